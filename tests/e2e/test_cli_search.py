"""``qcc search`` and ``qcc report`` on a tiny model: what they write, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Qcc = Callable[..., Any]
FEW = ("-P", "mixed-precision.tries=2", "-P", "mixed-precision.ends=null", "-t", "ref", "-j", 1)


def test_search_compile_report(run_qcc: Qcc, tiny: Path, tmp_path: Path) -> None:
    model, data, out = tiny / "tiny.onnx", tiny / "data.npz", tmp_path / "out"
    sweep = ("--budgets", "bits=4:6:2", "-b", "bops=1e9", "-o", out, *FEW)
    result = run_qcc("search", model, "-d", data, *sweep, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [p["budgets"] for p in report["points"]] == [{"bits": 4.0, "bops": 1e9}, {"bits": 6.0, "bops": 1e9}]
    again = run_qcc("search", model, "-d", data, *sweep)
    assert again.code == 0, again.err
    assert "point-001" in again.out
    assert json.loads((out / "search.json").read_text())["points"] == report["points"]

    assert run_qcc("compile", "-c", out / "point-000.yaml").code == 0
    bits = json.loads(run_qcc("report", out / "point-000.qcc", "--json").out)["layers"]
    assert {row["layer"]: row["bits"] for row in bits} == report["points"][0]["weight_bits"]
    assert sum(row["bytes"] for row in bits) == report["points"][0]["costs"]["size"]

    page = tmp_path / "page.html"
    assert run_qcc("report", out, "-o", page).code == 0
    assert "<svg" in page.read_text()
    refused = run_qcc("report", out, "-o", page)
    assert (refused.code, refused.complaint) == (2, f"qcc: {page} exists: pass --force to replace it")


@pytest.mark.parametrize(
    ("budgets", "complaint"),
    [
        ((), "a search needs budgets"),
        (("bits=four",), "--budgets takes metric=a,b"),
        (("bits=4", "bits=5"), "each metric once, got 'bits=5'"),
        (("energy=1",), "unknown budget metric 'energy'"),
        (("bits=1",), "the tightest reachable is 2"),
        (("size=1000", "drop=1e-12"), "no assignment within the other budgets has drop <= 1e-12; the tightest"),
        (("latency=1",), "pass --latency"),
    ],
)
def test_budgets_that_cannot_be(run_qcc: Qcc, tiny: Path, tmp_path: Path, budgets: Any, complaint: str) -> None:
    flags = [part for budget in budgets for part in ("--budgets", budget)]
    result = run_qcc("search", tiny / "tiny.onnx", "-d", tiny / "data.npz", *flags, "-o", tmp_path / "out", *FEW)
    assert result.code == 2
    assert complaint in result.err


def test_bits_that_are_given_by_hand(run_qcc: Qcc, tiny: Path, tmp_path: Path) -> None:
    for plan, complaint in (('{"nine": 4}', "the graph has no layer 'nine'"), ('{"scores": 9}', "9 bits for 'scores'")):
        flags = ("-P", f"assign-bits.weight_bits={plan}", "-t", "ref", "-o", tmp_path / "net.qcc")
        result = run_qcc("compile", tiny / "tiny.onnx", "-d", tiny / "data.npz", *flags)
        assert result.code == 2
        assert complaint in result.err

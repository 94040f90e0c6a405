"""Artifacts that hold several instruction sets, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qcc_targets.cpu.isa import available

Qcc = Callable[..., Any]


def test_each_instruction_set_can_be_asked_for(run_qcc: Qcc, tiny: Path, tmp_path: Path) -> None:
    names = [level.name for level in available()][:2]
    fat, data = tmp_path / "fat.qcc", tiny / "data.npz"
    made = run_qcc("compile", tiny / "tiny.onnx", "-d", data, "--isa", ",".join(names), "-o", fat, "--json")
    assert made.code == 0, made.err
    assert set(json.loads(made.out)["manifest"]["target"]["options"]["isa"]) == set(names)
    for name in (*names, None):
        asked = () if name is None else ("--isa", name)
        done = run_qcc("run", fat, "-d", data, "--raw", "-o", tmp_path / f"{name}.npz", *asked)
        assert done.code == 0, done.err
    scores = [np.load(tmp_path / f"{name}.npz")["scores"] for name in (*names, None)]
    assert all(np.array_equal(scores[0], other) for other in scores[1:])
    verified = run_qcc("verify", fat, "-m", tiny / "tiny.onnx", "-d", data, "--isa", names[0])
    assert verified.code == 0, verified.err
    refused = run_qcc("run", fat, "-d", data, "--isa", "amx-next")
    assert refused.code == 2 and f"only for {', '.join(reversed(names))}" in refused.complaint


def test_other_targets_have_no_instruction_sets(run_qcc: Qcc, tiny: Path, compiled: Path) -> None:
    refused = run_qcc("run", compiled, "-d", tiny / "data.npz", "--isa", "avx2")
    assert refused.code == 2 and "the backend 'ref' takes no option 'isa'" in refused.complaint


def test_an_unknown_instruction_set_is_named(run_qcc: Qcc, tiny: Path, tmp_path: Path) -> None:
    refused = run_qcc("compile", tiny / "tiny.onnx", "-d", tiny / "data.npz", "--isa", "mmx", "-o", tmp_path / "x.qcc")
    assert refused.code == 2 and "unknown instruction set 'mmx'" in refused.complaint

"""Reports: what they hold, and that the page stands alone."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcc.artifact.manifest import Manifest
from qcc.config import make_config
from qcc.driver import compile_model
from qcc.errors import ArtifactError, ConfigError, TargetError
from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.types import BATCH
from qcc.points import Point, SearchReport, with_front
from qcc.reporting.data import collect
from qcc.reporting.html import page
from qcc.reporting.plot import pareto

WriteSmall = Callable[..., Manifest]


def point(number: int, bits: int, kl: float) -> Point:
    """A point of a search over one layer <a> with two candidates."""
    layer = {
        "layer": "<a>",
        "kind": "conv2d",
        "parameters": 1000,
        "macs": 9000,
        "sensitivity": {"pairwise": {"2": 0.5, "4": 0.25, "8": 0.01}},
        "bytes": {"2": 250, "4": 500, "8": 1000},
        "seconds": {},
    }
    scores = {"kl": kl, "kl_error": 0.1, "softened": kl / 10, "value": kl, "gap": 0.0}
    candidate = {"objective": "pairwise", **scores, "costs": {"size": 500.0}}
    details = {
        "layers": [layer],
        "candidates": [{**candidate, "differs": {}}, {**candidate, "differs": {"<a>": [2, bits]}}],
    }
    return Point(
        budgets={"bits": float(bits)},
        config=f"point-{number:03}.yaml",
        objective="pairwise",
        weight_bits={"<a>": bits},
        costs={"bits": float(bits), "size": 125.0 * bits},
        kl=kl,
        kl_error=0.01,
        softened=kl / 10,
        gap=0.0,
        details=details,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    points = with_front((point(0, 4, 0.3), point(1, 8, 0.02), Point(budgets={"bits": 1.0}, error="too tight")))
    SearchReport(key="k", model="net", source_sha256="0" * 64, target="ref", points=points).write(tmp_path)
    return tmp_path


class Page(HTMLParser):
    """Which tags and attributes a page has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= dict(attrs)


def test_the_page_of_a_search_stands_alone(folder: Path) -> None:
    text = page(collect(folder))
    found = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert not {"src", "href"} & set(found.attributes)
    assert not re.search(r"https?:|url\(|@import", text)
    assert found.tags.count("circle") == 2
    assert "&lt;a&gt;" in text
    assert "<a>" not in text
    assert "too tight" in text


def test_layers_have_the_bytes_and_errors_of_their_bits(folder: Path) -> None:
    data = collect(folder)
    (row,) = data["layers"]["point-000.yaml"]
    assert (row["bits"], row["bytes"], row["error"]) == (4, 500, {"pairwise": 0.25})
    # One width down saves 250 bytes and costs 0.25 nats: 1 per thousand bytes; one up costs 500 bytes for 0.24.
    assert "+1, -0.48" in page(data)
    json.dumps(data)


def test_the_plot_joins_the_front() -> None:
    points = [p.model_dump() for p in with_front((point(0, 4, 0.3), point(1, 5, 0.4), point(2, 8, 0.02)))]
    plot = pareto("bits", points)
    assert plot is not None
    assert [d.front for d in plot.dots] == [True, False, True]
    assert len(plot.line.split()) == 2
    assert all(plot.left <= d.x <= plot.right and plot.top <= d.y <= plot.bottom for d in plot.dots)
    assert pareto("bits", points[:1]) is None


def test_an_artifact_is_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    b = GraphBuilder("small")
    x = b.input("x", (BATCH, 6))
    for name, shape in (("one", (9, 6)), ("two", (9, 9)), ("three", (3, 9))):
        w = b.constant(rng.normal(size=shape).astype(np.float32), f"w_{name}")
        x = b.op("dense", [x, w, b.constant(np.zeros(shape[0], np.float32), f"b_{name}")], name=name)
    onnx.save(export_onnx(b.graph([x])), tmp_path / "small.onnx")
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(80, 6)).astype(np.float32))
    fields = {"model": tmp_path / "small.onnx", "output": tmp_path / "small.qcc", "target": "ref"}
    passes = {"mixed-precision": {"budgets": {"bits": 6.2}, "tries": 2}}
    compile_model(make_config({**fields, "data": str(tmp_path / "data.npz"), "passes": passes}))
    data = collect(tmp_path / "small.qcc")
    rows = {row["layer"]: row for row in data["layers"]}
    sizes = {"one": 54, "two": 81, "three": 27}
    assert sum(rows[n]["bits"] * size for n, size in sizes.items()) <= 6.2 * sum(sizes.values())
    assert rows["two"]["bytes"] == -(-81 * rows["two"]["bits"] // 8)
    assert {"pairwise", "rounding"} <= set(rows["two"]["error"])
    assert data["weight_bytes"] == sum(row["bytes"] for row in rows.values())
    assert "What the bits were chosen from" in page(data)
    with pytest.raises(TargetError, match="target 'ref' cannot time its layers"):
        collect(tmp_path / "small.qcc", timed=True)


def test_an_artifact_without_its_report_is_refused(write_small: WriteSmall, tmp_path: Path) -> None:
    write_small(tmp_path / "net.qcc")
    with pytest.raises(ArtifactError, match=r"report\.json"):
        collect(tmp_path / "net.qcc")


def test_a_damaged_search_is_refused(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"search\.json: key: Field required"):
        collect(tmp_path)


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        collect(tmp_path)


def test_figures_are_rounded(folder: Path) -> None:
    rows: Any = collect(folder)["points"]
    rows[0]["kl"] = 0.123456789
    assert "0.1235" in page({**collect(folder), "points": rows})

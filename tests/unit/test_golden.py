"""Each tests/golden/*.qir: a '# run:' line, a graph, '# gives', and the graph expected after."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.graph import Value
from qcc.ir.text import const_store, parse, render
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass
from qcc.passmgr.target import Capabilities

CASES = sorted((Path(__file__).parents[1] / "golden").glob("*.qir"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_golden(path: Path, update_golden: bool) -> None:
    given, _, expected = path.read_text().partition("# gives\n")
    steps = [s.partition(" ") for s in given.splitlines()[0].removeprefix("# run: ").split("; ")]
    passes = tuple(make_pass(name, json.loads(options or "{}")) for name, _, options in steps)
    before = parse(given)
    assert render(before) in given, "the input itself does not round-trip"
    ctx = PassContext(capabilities=Capabilities(weight_bits=frozenset({4, 8}), activation_bits=frozenset({8, 16})))
    ctx.facts.put(CalibrationData({v.name: _samples(v) for v in before.inputs}))
    graph = Pipeline(passes).run(before, ctx)
    after = render(graph)
    assert render(parse(after, const_store(graph))) == after
    if update_golden:
        path.write_text(given + "# gives\n" + after)
    else:
        assert after == expected


def _samples(value: Value) -> NDArray[Any]:
    """16 samples of eighths in [-1, 1): with weights like these, sums are exact in any order."""
    codes = np.random.default_rng(0).integers(-8, 8, (16, *value.type.shape[1:]))
    return (codes / 8).astype(value.type.numpy)

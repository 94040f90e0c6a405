"""Each tests/golden/*.qir: a '# run:' line, a graph, '# gives', and the graph expected after."""

import json
from pathlib import Path

import pytest

from qcc.ir.text import const_store, parse, render
from qcc.passmgr.context import PassContext
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass

CASES = sorted((Path(__file__).parents[1] / "golden").glob("*.qir"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_golden(path: Path, update_golden: bool) -> None:
    given, _, expected = path.read_text().partition("# gives\n")
    steps = [s.partition(" ") for s in given.splitlines()[0].removeprefix("# run: ").split("; ")]
    passes = tuple(make_pass(name, json.loads(options or "{}")) for name, _, options in steps)
    before = parse(given)
    assert render(before) in given, "the input itself does not round-trip"
    graph = Pipeline(passes).run(before, PassContext())
    after = render(graph)
    assert render(parse(after, const_store(graph))) == after
    if update_golden:
        path.write_text(given + "# gives\n" + after)
    else:
        assert after == expected

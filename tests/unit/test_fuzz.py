"""The fuzzer: a clean share of it, and that broken engines are caught and shrunk."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import ConfigError, TargetError
from qcc.ir.bounds import certificates
from qcc.ir.graph import Graph, Stage
from qcc.ir.opset import OPSET
from qcc.ir.text import render
from qcc.verify.fuzz import complaint, fuzz, onnxruntime_engine
from qcc.verify.fuzz_case import Case, load_case
from qcc.verify.fuzz_graphs import MAKERS, make_case
from qcc.verify.interp import evaluate

Array = NDArray[Any]


def test_reference_and_onnxruntime_agree_on_random_graphs() -> None:
    engines = {"optimized": onnxruntime_engine(), "plain": onnxruntime_engine(optimize=False)}
    report = fuzz(150, 7, engines)
    assert not report.failures, "\n".join(map(str, report.failures))
    assert report.cases == 150
    assert report.refused == {"optimized": 0, "plain": 0}
    assert report.ops.keys() == MAKERS.keys(), "150 cases cover every operation"
    assert report.elements > 10_000


def test_every_integer_operation_is_drawn() -> None:
    assert set(MAKERS) == {kind for kind, spec in OPSET.items() if Stage.INTEGER in spec.stages} - {"constant"}


def test_cases_depend_on_seed_and_index_only() -> None:
    for index in (0, 5, 17):
        first, second = make_case(3, index), make_case(3, index)
        assert render(first.graph) == render(second.graph)
        for name, codes in first.inputs.items():
            np.testing.assert_array_equal(codes, second.inputs[name])
    assert render(make_case(3, 1).graph) != render(make_case(4, 1).graph)


def test_cases_are_certified_and_varied() -> None:
    """No case may overflow, and few may saturate into constants, which would hide every difference."""
    shifts, dtypes, flat = set(), set(), 0
    for index in range(100):
        case = make_case(9, index)
        certificates(case.graph)
        for o in case.graph.ops:
            dtypes.add(o.result.type.dtype)
            if "shift" in o.attrs:
                shifts.add(o.int_attr("shift"))
        outputs = evaluate(case.graph, case.inputs)
        flat += all(len(np.unique(a)) == 1 for a in outputs.values() if a.size > 8)
    assert {1, 32} <= shifts
    assert {"u8", "i8", "u16", "i16", "i32", "i64"} <= dtypes
    assert flat < 25


def _off_by_one_in_strided_convolutions(graph: Graph, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """The reference, but where a convolution strides, the right column of its result is off by one."""
    wrong = [o.result.name for o in graph.ops if o.kind == "iconv2d" and o.ints_attr("strides") != (1, 1)]
    values = dict(evaluate(graph, inputs, keep=wrong))
    for name in wrong:
        values[name] = values[name].copy()
        values[name][..., -1] ^= 1
    later = replace(
        graph,
        inputs=(*graph.inputs, *(o.result for o in graph.ops if o.result.name in wrong)),
        ops=tuple(o for o in graph.ops if o.result.name not in wrong),
    )
    return evaluate(later, {**inputs, **{name: values[name] for name in wrong}})


def test_a_broken_engine_is_caught_and_shrunk(tmp_path: Path) -> None:
    report = fuzz(120, 3, {"broken": _off_by_one_in_strided_convolutions}, out=tmp_path, stop_after=3)
    assert len(report.failures) == 3
    for failure in report.failures:
        ops = [o.kind for o in failure.case.graph.ops if o.kind != "constant"]
        assert ops == ["iconv2d"], failure
        elements = sum(codes.size for codes in failure.case.inputs.values())
        assert elements <= 40, failure
        assert "elements differ" in failure.reason
        assert failure.path is not None
        again = load_case(failure.path)
        assert render(again.graph) == render(failure.case.graph)
        assert complaint(_off_by_one_in_strided_convolutions, again) == failure.reason
        assert str(failure).startswith(f"broken: case 3/{failure.case.index} (iconv2d)")


def test_a_crash_is_a_finding_and_a_refusal_is_not() -> None:
    def crashing(graph: Graph, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if any(o.kind == "transpose" for o in graph.ops):
            raise ZeroDivisionError("no transposes")
        return evaluate(graph, inputs)

    def refusing(graph: Graph, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        raise TargetError("not today")

    report = fuzz(40, 1, {"crashing": crashing, "refusing": refusing}, stop_after=1)
    assert not report.clean
    (failure,) = report.failures
    assert failure.engine == "crashing"
    assert failure.reason == "ZeroDivisionError: no transposes"
    assert [o.kind for o in failure.case.graph.ops if o.kind != "constant"] == ["transpose"]
    assert report.refused["refusing"] == report.cases


def test_a_missing_or_retyped_output_is_a_difference() -> None:
    case = make_case(7, 0)
    assert complaint(lambda g, x: {}, case) is not None
    wide = complaint(lambda g, x: {k: a.astype(np.int64) + 0 for k, a in evaluate(g, x).items()}, _first_narrow())
    assert wide is not None


def _first_narrow() -> Case:
    cases = (make_case(7, i) for i in range(50))
    return next(c for c in cases if all(v.type.dtype != "i64" for v in c.graph.outputs))


def test_unreadable_cases_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.qir cannot be read"):
        load_case(tmp_path / "gone.qir")

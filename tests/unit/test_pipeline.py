"""Pipelines: spelling, order, and what happens when a pass misbehaves."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.errors import ConfigError, PassError, PluginError, VerifyError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import TensorType
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.pipeline import Pipeline, auto_order, check_order
from qcc.passmgr.spelling import PassSpec, parse_pipeline, spell


@dataclass(frozen=True)
class Heat:
    degrees: int


class Measure(Pass):
    name: ClassVar[str] = "measure"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[tuple[type, ...]] = (Heat,)

    degrees: int = 20
    tags: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        ctx.facts.put(Heat(self.degrees))
        return graph


class Use(Measure):
    name: ClassVar[str] = "use"
    needs: ClassVar[tuple[type, ...]] = (Heat,)
    gives: ClassVar[tuple[type, ...]] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        assert ctx.facts.get(Heat).degrees > 0
        return graph


class Misbehave(Measure):
    name: ClassVar[str] = "misbehave"
    gives: ClassVar[tuple[type, ...]] = ()

    how: str = "raise"

    def run(self, graph: Graph, ctx: PassContext) -> Any:
        if self.how == "raise":
            raise KeyError("conv")
        if self.how == "error":
            raise PassError("layer too wide")
        if self.how == "nothing":
            return None
        return Graph(graph.name, Stage.INTEGER if self.how == "stage" else Stage.FLOAT, *self._rest(graph))

    def _rest(self, graph: Graph) -> tuple[Any, ...]:
        if self.how == "stage":
            x = Value("x", TensorType((2,), "i8"))
            return (x,), (), (x,)
        bad = Value("x", TensorType((2,), "i8"))
        return (bad,), (), (bad,)


class ToInteger(Measure):
    name: ClassVar[str] = "to-integer"
    accepts: ClassVar[Stage] = Stage.QUANTIZED
    yields: ClassVar[Stage] = Stage.INTEGER
    gives: ClassVar[tuple[type, ...]] = ()


@pytest.fixture
def graph() -> Graph:
    b = GraphBuilder("g")
    return b.graph([b.op("clip", [b.input("x", (2,))], name="y", lo=0.0)])


def run(graph: Graph, *passes: Pass) -> Graph:
    return Pipeline(passes).run(graph, PassContext())


def test_facts_flow_in_order(graph: Graph) -> None:
    assert run(graph, Measure(), Use()) is graph
    with pytest.raises(ConfigError, match="use needs Heat, which nothing before it gives; move measure before it"):
        run(graph, Use(), Measure())
    with pytest.raises(ConfigError, match=r"use needs Heat, which nothing before it gives$"):
        run(graph, Use())
    check_order([Use()], frozenset({Heat}))


def test_stages_must_fit(graph: Graph) -> None:
    with pytest.raises(
        ConfigError, match="to-integer takes a graph at stage quantized, but measure yields stage float"
    ):
        run(graph, Measure(), ToInteger())
    with pytest.raises(ConfigError, match="to-integer takes a graph at stage quantized; this one is at stage float"):
        run(graph, ToInteger())


def test_auto_order() -> None:
    assert auto_order([Use(), Measure()]) == [Measure(), Use()]

    class Circle(Use):
        gives: ClassVar[tuple[type, ...]] = (Heat,)

    with pytest.raises(ConfigError, match="need each other in a circle"):
        auto_order([Circle(), Circle(degrees=1)])


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raise", PluginError, "pass 'misbehave' raised KeyError: 'conv'"),
        ("error", PassError, "layer too wide"),
        ("nothing", PluginError, "pass 'misbehave' returned NoneType, not a graph"),
        ("stage", PluginError, "yields stage float, but its graph is at stage integer"),
        ("type", VerifyError, "element type i8 is not legal at stage float"),
    ],
)
def test_misbehaving_passes_are_named(graph: Graph, how: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run(graph, Measure(), Misbehave(how=how))
    assert caught.value.__notes__ == [f"in pass 2/2: {Misbehave(how=how)}"]


def test_observer_sees_every_pass(graph: Graph) -> None:
    seen: list[str] = []
    Pipeline((Measure(), Use()), lambda p, before, after: seen.append(str(p))).run(graph, PassContext())
    assert seen == ["measure", "use"]


def test_spelling_of_a_pass() -> None:
    spelled = str(Measure(degrees=3, tags=("a b", "c")))
    assert spelled == 'measure{degrees=3, tags=["a b", "c"]}'
    (spec,) = parse_pipeline(spelled)
    assert Measure.model_validate(spec.options) == Measure(degrees=3, tags=("a b", "c"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


@settings(max_examples=50)
@given(st.lists(st.tuples(NAMES, st.dictionaries(KEYS, VALUES, max_size=3)), min_size=1, max_size=4))
def test_parse_reads_what_spell_writes(steps: list[tuple[str, dict[str, Any]]]) -> None:
    text = ", ".join(spell(name, options) for name, options in steps)
    assert parse_pipeline(text) == tuple(PassSpec(name, options) for name, options in steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the name of a pass at column 1"),
        ("a,", "a pass after ',' at column 3"),
        ("a b", "',' between passes at column 3"),
        ("a{", "option=value at column 3"),
        ("a{}", "option=value at column 3"),
        ("a{x}", "option=value at column 3"),
        ("a{x=}", "a value"),
        ("a{x=1", "',' or '}'"),
        ("a{x=1, x=2}", "option 'x' once"),
        ("9", "the name of a pass"),
    ],
)
def test_misspelled_pipelines(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(text)
    assert message in str(caught.value)

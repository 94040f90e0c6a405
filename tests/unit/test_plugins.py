"""Plug-ins that are missing, doubled, malformed, or raise: one clear PluginError each."""

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from qcc import discovery
from qcc.device import build_device, check_device
from qcc.errors import ConfigError, PluginError, TargetError
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.plugins import load_pass, load_target, make_pass, make_recipe, make_target
from qcc.passmgr.target import Capabilities, Target


class Nothing(Pass):
    """Changes nothing."""

    name: ClassVar[str] = "nothing"
    accepts: ClassVar[Stage] = Stage.INTEGER
    yields: ClassVar[Stage] = Stage.INTEGER

    level: int = 1

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        return graph


class Toy(Target):
    """A device."""

    name: ClassVar[str] = "toy"
    backend: ClassVar[str] = "toy"

    writes: str = "inside"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ops=frozenset({"ilinear"}))

    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        if self.writes == "nothing":
            return [out / "absent.bin"]
        if self.writes == "outside":
            return [Path(__file__)]
        if self.writes == "error":
            raise ZeroDivisionError("a bug")
        (out / "sub").mkdir()
        (out / "sub" / "code.bin").write_bytes(b"code")
        return [out / "sub" / "code.bin"]


def raising_recipe(options: object) -> Sequence[Pass]:
    raise ValueError("no idea")


def wrong_recipe(options: object) -> Sequence[object]:
    return [Nothing(), "dyadic"]


def good_recipe(options: dict[str, dict[str, Any]]) -> Sequence[Pass]:
    return [make_pass("nothing", options.get("nothing"))]


HERE: dict[str, object] = {
    "nothing": Nothing,
    "toy": Toy,
    "number": 3,
    "function": raising_recipe,
    "alias": Nothing,
    "raising": raising_recipe,
    "wrong": wrong_recipe,
    "good": good_recipe,
}


class FakeEntry:
    """An entry point that loads from ``HERE``."""

    def __init__(self, name: str, owner: str = "pkg") -> None:
        self.name = name
        self.dist = type("Dist", (), {"name": owner})()

    def load(self) -> object:
        if self.name == "broken":
            raise ImportError("no module named gpu")
        return HERE[self.name]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*HERE, "broken"]
    monkeypatch.setattr(discovery, "entry_points", lambda group: [FakeEntry(name) for name in names])


def test_good_ones_load() -> None:
    assert make_pass("nothing", {"level": 2}) == Nothing(level=2)
    assert str(make_pass("nothing", {"level": 2})) == "nothing{level=2}"
    assert make_target("toy") == Toy()
    assert make_recipe("good", {"nothing": {"level": 3}}) == (Nothing(level=3),)


def test_missing() -> None:
    with pytest.raises(PluginError, match=r"qcc\.passes: no 'nope'; installed: alias, broken, function"):
        load_pass("nope")


def test_does_not_import() -> None:
    with pytest.raises(PluginError, match="'broken' of pkg does not load: ImportError: no module named gpu"):
        load_target("broken")


@pytest.mark.parametrize("name", ["number", "function", "toy"])
def test_wrong_type(name: str) -> None:
    with pytest.raises(PluginError, match=rf"qcc\.passes: '{name}' is .*, not a subclass of qcc\.passmgr\.base\.Pass"):
        load_pass(name)


def test_other_name_than_its_entry_point() -> None:
    with pytest.raises(PluginError, match="'alias' loads Nothing, whose name is 'nothing'"):
        load_pass("alias")


def test_two_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = [EntryPoint("same", f"module{i}:Pass", "qcc.passes") for i in range(2)]
    monkeypatch.setattr(discovery, "entry_points", lambda group: twins)
    monkeypatch.setattr(discovery, "owner", lambda ep: f"package-{ep.value[6]}")
    with pytest.raises(PluginError, match=r"qcc\.passes: 'same' is provided by package-0 and package-1"):
        load_pass("same")


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match=r"pass 'nothing': level: .*; speed: Extra inputs"):
        make_pass("nothing", {"level": "high", "speed": 1})
    with pytest.raises(ConfigError, match="target 'toy': mcpu: Extra inputs"):
        make_target("toy", {"mcpu": "x"})


def test_recipes() -> None:
    with pytest.raises(PluginError, match="'raising' raised ValueError: no idea"):
        make_recipe("raising", {})
    with pytest.raises(PluginError, match="'wrong' lists 'dyadic', which is no pass"):
        make_recipe("wrong", {})


def test_build_collects_files(integer_graph: Graph) -> None:
    assert build_device(Toy(), integer_graph, PassContext()) == {"device/sub/code.bin": b"code"}


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        ("nothing", r"reports the file .*absent\.bin, which it did not write"),
        ("outside", "which it did not write"),
        ("error", "target 'toy' raised ZeroDivisionError: a bug"),
    ],
)
def test_targets_that_misbehave(integer_graph: Graph, writes: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        build_device(Toy(writes=writes), integer_graph, PassContext())


def test_operations_that_a_target_lacks(integer_graph: Graph) -> None:
    with pytest.raises(TargetError, match="target 'toy' cannot run: idense %y"):
        check_device(integer_graph, Toy())

"""Plug-in discovery. The built-in passes and targets come through this same door."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from qcc.errors import ConfigError, PluginError
from qcc.passmgr.base import Pass
from qcc.passmgr.target import Target

M = TypeVar("M", bound=BaseModel)

PASSES = "qcc.passes"
TARGETS = "qcc.targets"


def discover(group: str) -> dict[str, EntryPoint]:
    """Entry points of ``group`` by name. Raises PluginError when two distributions share a name."""
    found: dict[str, EntryPoint] = {}
    for ep in sorted(entry_points(group=group), key=lambda e: (e.name, _owner(e))):
        if ep.name in found and ep != found[ep.name]:
            raise PluginError(f"{group}: '{ep.name}' is provided by {_owner(found[ep.name])} and {_owner(ep)}")
        found[ep.name] = ep
    return found


def load(group: str, name: str) -> object:
    """The object behind an entry point. Raises PluginError when it is missing or does not import."""
    known = discover(group)
    if name not in known:
        raise PluginError(f"{group}: no '{name}'; installed: {', '.join(known) or 'none'}")
    try:
        return known[name].load()
    except Exception as e:
        raise PluginError(f"{group}: '{name}' of {_owner(known[name])} does not load: {type(e).__name__}: {e}") from e


def load_pass(name: str) -> type[Pass]:
    return _subclass(PASSES, name, Pass)  # type: ignore[type-abstract]


def load_target(name: str) -> type[Target]:
    return _subclass(TARGETS, name, Target)  # type: ignore[type-abstract]


def make_pass(name: str, options: Mapping[str, Any] | None = None) -> Pass:
    """The pass ``name`` with its options validated. Raises PluginError, ConfigError."""
    return _make(load_pass(name), f"pass '{name}'", options)


def make_target(name: str, options: Mapping[str, Any] | None = None) -> Target:
    """The target ``name`` with its options validated. Raises PluginError, ConfigError."""
    return _make(load_target(name), f"target '{name}'", options)


def explain(error: ValidationError) -> str:
    """A validation error in one line: ``field: reason; …``."""
    rows = (f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors())
    return "; ".join(rows)


def _make(kind: type[M], what: str, options: Mapping[str, Any] | None) -> M:
    try:
        return kind.model_validate(dict(options or {}))
    except ValidationError as e:
        raise ConfigError(f"{what}: {explain(e)}") from e


def _subclass(group: str, name: str, base: type[M]) -> type[M]:
    found = load(group, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PluginError(f"{group}: '{name}' is {found!r}, not a subclass of {base.__module__}.{base.__name__}")
    return found


def _owner(ep: EntryPoint) -> str:
    return ep.dist.name if ep.dist else "an unknown distribution"

"""Plug-in discovery. The built-in passes and targets come through this same door."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from qcc.discovery import load
from qcc.errors import ConfigError, PluginError
from qcc.passmgr.base import Pass
from qcc.passmgr.target import Target
from qcc.validation import explain

M = TypeVar("M", bound=BaseModel)

PASSES = "qcc.passes"
TARGETS = "qcc.targets"


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


def _make(kind: type[M], what: str, options: Mapping[str, Any] | None) -> M:
    try:
        return kind.model_validate(dict(options or {}))
    except ValidationError as e:
        raise ConfigError(f"{what}: {explain(e)}") from e


def _subclass(group: str, name: str, base: type[M]) -> type[M]:
    found = load(group, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PluginError(f"{group}: '{name}' is {found!r}, not a subclass of {base.__module__}.{base.__name__}")
    if getattr(found, "name", None) != name:
        raise PluginError(f"{group}: '{name}' loads {found.__name__}, whose name is {getattr(found, 'name', None)!r}")
    return found

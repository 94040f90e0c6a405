"""Plug-in discovery. The built-in passes and targets come through this same door."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from qcc.discovery import load
from qcc.errors import ConfigError, PluginError, QccError
from qcc.passmgr.base import Pass
from qcc.passmgr.target import Target
from qcc.validation import explain

M = TypeVar("M", bound=BaseModel)

PASSES = "qcc.passes"
TARGETS = "qcc.targets"
PIPELINES = "qcc.pipelines"


class Recipe(Protocol):
    """Lists the passes of a ready-made pipeline, FLOAT to INTEGER; plug-ins in the group ``qcc.pipelines``.

    ``options`` holds the options of passes by their names, as ``make_pass`` takes them; it may
    name passes that the recipe includes only when asked for (``byte-input``). Raises ConfigError
    for a pass that the recipe does not have.
    """

    def __call__(self, options: Mapping[str, Mapping[str, Any]]) -> Sequence[Pass]: ...


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


def make_recipe(name: str, options: Mapping[str, Mapping[str, Any]]) -> tuple[Pass, ...]:
    """The passes of the ready-made pipeline ``name``. Raises PluginError, ConfigError."""
    recipe: Any = load(PIPELINES, name)
    try:
        passes = tuple(recipe(options))
    except QccError:
        raise
    except Exception as e:
        raise PluginError(f"{PIPELINES}: '{name}' raised {type(e).__name__}: {e}") from e
    for p in passes:
        if not isinstance(p, Pass):
            raise PluginError(f"{PIPELINES}: '{name}' lists {p!r}, which is no pass")
    return passes


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

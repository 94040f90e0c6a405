"""How passes are written: ``canonicalize, calibrate{method=mse, samples=256}``.

Option values are JSON; text that is a plain word needs no quotes. ``parse_pipeline`` reads what
``spell`` writes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qcc.errors import ConfigError

_NAME: Final = re.compile(r"\s*([A-Za-z][\w-]*)\s*")
_KEY: Final = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")
_WORD: Final = re.compile(r"[A-Za-z_./][\w./:-]*")
_END: Final = re.compile(r"\s*([,}])")
_SEPARATOR: Final = re.compile(r"\s*(,|$)")


@dataclass(frozen=True, slots=True)
class PassSpec:
    """A pass as the user names it: nothing is known yet about whether it exists."""

    name: str
    options: Mapping[str, Any]


def spell(name: str, options: Mapping[str, Any]) -> str:
    """``name{key=value, …}``, or the bare name where there are no options."""
    if not options:
        return name
    return name + "{" + ", ".join(f"{k}={_spell_value(v)}" for k, v in options.items()) + "}"


def parse_pipeline(text: str) -> tuple[PassSpec, ...]:
    """The passes that ``text`` lists, separated by commas. Raises ConfigError with the position."""
    specs: list[PassSpec] = []
    at = 0
    while text[at:].strip() or not specs:
        match = _NAME.match(text, at)
        if match is None:
            raise _error(text, at, "the name of a pass")
        options, at = _parse_options(text, match.end())
        specs.append(PassSpec(match[1], options))
        end = _SEPARATOR.match(text, at)
        if end is None:
            raise _error(text, at, "',' between passes")
        at = end.end()
        if end[1] and not text[at:].strip():
            raise _error(text, at, "a pass after ','")
    return tuple(specs)


def _parse_options(text: str, at: int) -> tuple[dict[str, Any], int]:
    options: dict[str, Any] = {}
    if not text.startswith("{", at):
        return options, at
    at += 1
    while True:
        key = _KEY.match(text, at)
        if key is None:
            raise _error(text, at, "option=value")
        if key[1] in options:
            raise _error(text, at, f"option '{key[1]}' once")
        options[key[1]], at = _parse_value(text, key.end())
        end = _END.match(text, at)
        if end is None:
            raise _error(text, at, "',' or '}'")
        at = end.end()
        if end[1] == "}":
            return options, at


def _parse_value(text: str, at: int) -> tuple[Any, int]:
    word = _WORD.match(text, at)
    if word is not None and word[0] not in ("true", "false", "null", "NaN", "Infinity"):
        return word[0], word.end()
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError:
        raise _error(text, at, "a value (JSON, or a plain word)") from None


def _spell_value(value: Any) -> str:
    if isinstance(value, str) and _WORD.fullmatch(value) and value not in ("true", "false", "null", "NaN", "Infinity"):
        return value
    return json.dumps(value)


def _error(text: str, at: int, wanted: str) -> ConfigError:
    return ConfigError(f"pipeline {text!r}: expected {wanted} at column {at + 1}")

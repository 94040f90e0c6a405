"""Which of a program's instruction sets this machine runs."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from qcc.errors import ArtifactError, ConfigError
from qcc.runtime.cpu import processor_flags, request_amx
from qcc.runtime.program import Level, Program


def choose(program: Program, isa: str | None = None, flags: frozenset[str] | None = None) -> Level:
    """The richest level of ``program`` that this machine runs, or the one that ``isa`` names.

    ``flags`` are the processor's, by default this one's. Where the level uses AMX, the operating
    system has allowed it. Raises ArtifactError where no level fits, ConfigError for an unknown ``isa``.
    """
    if program.machine != platform.machine():
        raise ArtifactError(f"compiled for {program.machine}; this machine is {platform.machine()}")
    names = [level.isa for level in program.levels]
    if isa is not None and isa not in names:
        raise ConfigError(f"the artifact was not compiled for '{isa}', only for {', '.join(names)}")
    have = processor_flags() if flags is None else flags
    reasons = []
    for level in program.levels if isa is None else (program.levels[names.index(isa)],):
        if (reason := next(_obstacles(level, have), None)) is None:
            return level
        reasons.append(f"{level.isa} ({reason})")
    raise ArtifactError(f"this processor cannot run {'; nor '.join(reasons)}: compile for another one")


def _obstacles(level: Level, have: frozenset[str]) -> Iterator[str]:
    """Why this machine does not run ``level``."""
    if missing := sorted(set(level.flags) - have):
        yield f"lacks {', '.join(missing)}"
    if any(flag.startswith("amx") for flag in level.flags):
        try:
            request_amx()
        except ArtifactError as e:
            yield str(e)

"""Instruction sets: what the kernels may use, by level, and which of them this machine has."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from qcc.errors import ConfigError
from qcc.runtime.cpu import processor_flags

_X86: Final = "x86_64-unknown-linux-gnu"
_ARM: Final = "aarch64-unknown-linux-gnu"


@dataclass(frozen=True, slots=True)
class Isa:
    """One level of instruction set.

    ``features`` are what kernel templates ask about (``avx2``, ``avxvnni``, ``avx512``, ``vnni``,
    ``vbmi``, ``ifma``, ``amx``; ``neon``, ``dotprod``, ``i8mm``; a level lists all that it has; ``packed`` asks
    for small constants), ``flags`` the names under which Linux lists the processor features that the level
    needs, ``mcpu`` and ``mattr`` LLVM's.
    """

    name: str
    vector_bits: int
    features: frozenset[str]
    flags: frozenset[str]
    mcpu: str
    mattr: tuple[str, ...] = ()
    triple: str = _X86
    tuning: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The fastest kernel of a site, by its spelling, where that was measured (see ``tuning``)."""

    @property
    def machine(self) -> str:
        """The processor family, as ``platform.machine()`` spells it."""
        return self.triple.partition("-")[0]

    def target(self) -> dict[str, Any]:
        """The description that TVM's ``Target`` takes."""
        spec: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.mcpu}
        if self.mattr:
            spec["mattr"] = list(self.mattr)
        return spec

    def __contains__(self, feature: str) -> bool:
        return feature in self.features


def _level(name: str, bits: int, mcpu: str, features: str, flags: str, mattr: tuple[str, ...] = ()) -> Isa:
    return Isa(name, bits, frozenset(features.split()), frozenset(flags.split()), mcpu, mattr)


def _arm(name: str, features: str, flags: str, mattr: tuple[str, ...]) -> Isa:
    return Isa(name, 128, frozenset(features.split()), frozenset(flags.split()), "generic", mattr, _ARM)


_AVX2 = "avx2 fma bmi1 bmi2 f16c movbe"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512dq avx512vl avx512cd"
_VNNI = f"{_AVX512} avx512_vnni"
_VBMI = f"{_VNNI} avx512ifma avx512vbmi avx512_vbmi2 avx512_bitalg avx512_vpopcntdq gfni vaes vpclmulqdq"
_AMX = f"{_VBMI} amx_tile amx_int8 avx_vnni"
_WIDE = ("-prefer-256-bit",)
_TILES = ("+amx-tile", "+amx-int8", "+avxvnni")
"""On Ice Lake's instruction costs: with those that LLVM has for Sapphire Rapids, vector code is 5 to 15 % slower."""

LEVELS: Final[Mapping[str, Isa]] = {
    level.name: level
    for level in (
        _level("generic", 128, "x86-64", "", ""),
        _level("avx2", 256, "haswell", "avx2", _AVX2),
        _level("avxvnni", 256, "alderlake", "avx2 avxvnni", f"{_AVX2} avx_vnni"),
        _level("avx512", 512, "skylake-avx512", "avx2 avx512", _AVX512, _WIDE),
        _level("avx512vnni", 512, "cascadelake", "avx2 avx512 vnni", _VNNI, _WIDE),
        _level("avx512vbmi", 512, "icelake-server", "avx2 avx512 vnni vbmi ifma", _VBMI, _WIDE),
        _level("amx", 512, "icelake-server", "avx2 avx512 vnni vbmi ifma avxvnni amx", _AMX, (*_WIDE, *_TILES)),
        _arm("neon", "neon", "asimd", ("+neon",)),
        _arm("dotprod", "neon dotprod", "asimd asimddp", ("+v8.2a", "+dotprod")),
        _arm("i8mm", "neon dotprod i8mm", "asimd asimddp i8mm", ("+v8.2a", "+dotprod", "+i8mm")),
    )
}
"""Every level, from the plainest to the richest of each processor family."""

_CPUS: Final[Mapping[str, str]] = {
    "x86-64": "generic",
    "x86-64-v2": "generic",
    "nehalem": "generic",
    "x86-64-v3": "avx2",
    "haswell": "avx2",
    "broadwell": "avx2",
    "skylake": "avx2",
    "znver1": "avx2",
    "znver2": "avx2",
    "znver3": "avx2",
    "alderlake": "avxvnni",
    "raptorlake": "avxvnni",
    "sierraforest": "avxvnni",
    "x86-64-v4": "avx512",
    "skylake-avx512": "avx512",
    "cascadelake": "avx512vnni",
    "cooperlake": "avx512vnni",
    "icelake-client": "avx512vbmi",
    "icelake-server": "avx512vbmi",
    "tigerlake": "avx512vbmi",
    "rocketlake": "avx512vbmi",
    "znver4": "avx512vbmi",
    "znver5": "avx512vbmi",
    "sapphirerapids": "amx",
    "emeraldrapids": "amx",
    "graniterapids": "amx",
    "cortex-a53": "neon",
    "cortex-a57": "neon",
    "cortex-a72": "neon",
    "cortex-a73": "neon",
    "cortex-a55": "dotprod",
    "cortex-a76": "dotprod",
    "cortex-a78": "dotprod",
    "neoverse-n1": "dotprod",
    "cortex-a510": "i8mm",
    "cortex-a710": "i8mm",
    "neoverse-n2": "i8mm",
    "neoverse-v1": "i8mm",
    "neoverse-v2": "i8mm",
}
"""The level of each LLVM processor name that ``mcpu`` accepts."""


def available(flags: frozenset[str] | None = None, machine: str | None = None) -> tuple[Isa, ...]:
    """The levels that a ``machine`` whose processor has ``flags`` runs, plainest first; default: this one."""
    have = processor_flags() if flags is None else flags
    family = platform.machine() if machine is None else machine
    return tuple(level for level in LEVELS.values() if level.machine == family and level.flags <= have)


def resolve(isa: str = "native", mcpu: str | None = None, flags: frozenset[str] | None = None) -> Isa:
    """The level to compile for: ``isa``, or that of the LLVM processor ``mcpu``, tuned for it.

    ``native`` is the richest level that this machine runs. Raises ConfigError for unknown names,
    and where ``isa`` and ``mcpu`` are both given and the processor lacks the level.
    """
    if mcpu is None:
        if isa == "native":
            if not (levels := available(flags)):
                raise ConfigError(f"this machine is {platform.machine()}: name the instruction set to compile for")
            return levels[-1]
        if isa not in LEVELS:
            raise ConfigError(f"unknown instruction set '{isa}'; known: native, {', '.join(LEVELS)}")
        return LEVELS[isa]
    if mcpu == "native":
        return resolve(isa, None, flags)
    if mcpu not in _CPUS:
        raise ConfigError(f"unknown processor '{mcpu}'; known: native, {', '.join(_CPUS)}")
    level = LEVELS[_CPUS[mcpu]]
    if isa not in ("native", level.name):
        wanted = resolve(isa, None, flags)
        if wanted.machine != level.machine or not wanted.features <= level.features:
            raise ConfigError(f"processor '{mcpu}' has no {wanted.name}; its level is {level.name}")
        level = wanted
    return replace(level, mcpu=mcpu)


def resolve_all(isas: Sequence[str], mcpu: str | None = None) -> tuple[Isa, ...]:
    """The levels to compile for, richest first: each of ``isas`` once. ``mcpu`` is for a single one.

    Raises ConfigError as ``resolve`` does, and where the levels are of different processor families.
    """
    if mcpu is not None and len(isas) > 1:
        raise ConfigError("mcpu tunes for one processor; it does not go with several instruction sets")
    levels = {level.name: level for level in (resolve(isa, mcpu) for isa in isas)}
    if len({level.machine for level in levels.values()}) > 1:
        raise ConfigError(f"one artifact is for one processor family; {', '.join(levels)} are of several")
    order = list(LEVELS)
    return tuple(sorted(levels.values(), key=lambda level: -order.index(level.name)))

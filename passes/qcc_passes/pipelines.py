"""Ready-made pipelines, under ``[project.entry-points."qcc.pipelines"]``."""

from collections.abc import Mapping
from typing import Any, Final

from qcc.errors import ConfigError
from qcc.passmgr.base import Pass
from qcc.passmgr.plugins import make_pass

DEFAULT: Final = (
    "fold-batch-norm",
    "canonicalize",
    "equalize",
    "calibrate",
    "quantize",
    "round-weights",
    "bias-correct",
    "dyadic",
)

ON_REQUEST: Final = {"byte-input": ("byte-input", "canonicalize")}
"""Passes that run only when options are given for them, with what follows them; before anything is measured."""

SENSITIVITIES: Final = (
    "sensitivity-perturbation",
    "sensitivity-gauss-newton",
    "sensitivity-hutchinson",
    "sensitivity-eigenvalue",
)
"""Passes that measure what ``mixed-precision`` chooses by; the first two always do, the others on request."""

NARROW: Final = ("mixed-precision", "assign-bits")
"""Passes that choose bits; each runs on request, after calibration."""

GROUPS: Final = "precision-groups"
"""Runs on request, after these: bits inside layers."""

BLOCKS: Final = "rearrange-blocks"
"""Runs on request, before bits are chosen: weights that share exponents."""

TAILS: Final = "activation-tails"
"""Runs on request, once grids are chosen."""

JUDGES: Final = (TAILS, "mixed-precision", GROUPS, BLOCKS)
"""Passes that compile candidates, and compare them."""

WIDEN: Final = "widen-residuals"
"""Runs on request, once bits are chosen."""


NARROW_STRENGTH: Final = 0.25
"""Of equalization where weights have fewer than 8 bits: their error weighs more than that of activations."""


def default(options: Mapping[str, Mapping[str, Any]]) -> tuple[Pass, ...]:
    """From FLOAT to INTEGER by calibration alone; ``options`` are those of the passes, by name.

    Raises ConfigError when ``options`` names a pass that is not in the pipeline.
    """
    if unknown := sorted(set(options) - {*DEFAULT, *ON_REQUEST, *SENSITIVITIES, *NARROW, BLOCKS, GROUPS, WIDEN, TAILS}):
        raise ConfigError(f"options are given for the pass '{unknown[0]}', which the default pipeline does not have")
    if _narrow(options):
        options = {**options, "equalize": {"strength": NARROW_STRENGTH, **options.get("equalize", {})}}
    start = DEFAULT.index("equalize")
    asked = [name for wanted, names in ON_REQUEST.items() if wanted in options for name in names]
    names = [*DEFAULT[:start], *asked, *DEFAULT[start:]]
    at = names.index("quantize")
    names[at + 1 : at + 1] = [TAILS] if TAILS in options else []
    names[at:at] = _choosing_bits(options)
    # Candidates are judged as what the rest of this pipeline makes of them.
    first = WIDEN if WIDEN in options else "quantize"
    given = {name: dict(options.get(name, {})) for name in names}
    for judge in (name for name in JUDGES if name in given):
        rest = names[names.index("round-weights" if judge == TAILS else first) : names.index("dyadic")]
        given[judge] = {"scored_by": {name: given[name] for name in rest}} | given[judge]
    return tuple(make_pass(name, given[name]) for name in names)


def _narrow(options: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether weights may have fewer than 8 bits."""
    return options.get("quantize", {}).get("weight_bits", 8) < 8 or any(name in options for name in (*NARROW, GROUPS))


def _choosing_bits(options: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The passes that choose bits, as far as ``options`` asks for them. Raises ConfigError."""
    chosen = [name for name in NARROW if name in options]
    if GROUPS in options and options[GROUPS].get("budgets") and chosen:
        raise ConfigError(f"{chosen[0]} chooses the bits of layers: give {GROUPS} no budgets beside it")
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} both choose bits: give options for one of them")
    measured = [n for i, n in enumerate(SENSITIVITIES) if n in options or ("mixed-precision" in chosen and i < 2)]
    blocks = [BLOCKS] if BLOCKS in options else []
    return [*blocks, *measured, *chosen, *(name for name in (GROUPS, WIDEN) if name in options)]

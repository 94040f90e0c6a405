"""Ready-made pipelines, under ``[project.entry-points."qcc.pipelines"]``."""

from collections.abc import Mapping
from typing import Any, Final

from qcc.errors import ConfigError
from qcc.passmgr.base import Pass
from qcc.passmgr.plugins import make_pass

DEFAULT: Final = (
    "fold-batch-norm",
    "canonicalize",
    "equalize-depthwise",
    "calibrate",
    "quantize",
    "bias-correct",
    "dyadic",
)

ON_REQUEST: Final = {"byte-input": ("byte-input", "canonicalize")}
"""Passes that run only when options are given for them, with what follows them; before anything is measured."""


def default(options: Mapping[str, Mapping[str, Any]]) -> tuple[Pass, ...]:
    """From FLOAT to INTEGER by calibration alone; ``options`` are those of the passes, by name.

    Raises ConfigError when ``options`` names a pass that is not in the pipeline.
    """
    if unknown := sorted(set(options) - {*DEFAULT, *ON_REQUEST}):
        raise ConfigError(f"options are given for the pass '{unknown[0]}', which the default pipeline does not have")
    start = DEFAULT.index("equalize-depthwise")
    asked = [name for wanted, names in ON_REQUEST.items() if wanted in options for name in names]
    return tuple(make_pass(name, options.get(name)) for name in (*DEFAULT[:start], *asked, *DEFAULT[start:]))

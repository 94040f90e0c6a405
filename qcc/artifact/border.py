"""The border of an artifact: the only code between its integers and a caller's reals.

A real ``x`` becomes the code ``clamp(rint(float64(x) / scale) + zero_point)``, ``rint`` rounding
half to even; a code ``q`` becomes the real ``float32((q - zero_point) * scale)``, in float64.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.artifact.manifest import TensorSpec
from qcc.errors import ConfigError


def quantize_input(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """Codes of ``array``, as ``spec.dtype``, same shape.

    ``array`` holds reals (float16, float32, float64), or codes already: then it must have the
    element type of the codes, and passes unchanged. Raises ConfigError for any other element
    type, NaN, and codes outside a grid narrower than its element type.
    """
    if array.dtype == spec.numpy:
        return _checked_codes(spec, array)
    if array.dtype.kind != "f" or spec.quant is None:
        wanted = spec.dtype if spec.quant is None else f"{spec.dtype} codes or float32"
        raise ConfigError(f"input '{spec.name}' has dtype {array.dtype}; it takes {wanted}")
    codes = array.astype(np.float64)
    codes /= spec.quant.scale
    if np.isnan(codes).any():
        raise ConfigError(f"input '{spec.name}' holds NaN")
    np.rint(codes, out=codes)
    codes += spec.quant.zero_point
    np.clip(codes, spec.qmin, spec.qmax, out=codes)
    return codes.astype(spec.numpy)


def dequantize_output(spec: TensorSpec, codes: NDArray[Any]) -> NDArray[Any]:
    """The reals that ``codes`` stand for, as float32; the codes themselves where there is no grid."""
    if spec.quant is None:
        return codes
    real = (codes.astype(np.float64) - spec.quant.zero_point) * spec.quant.scale
    return real.astype(np.float32)


def _checked_codes(spec: TensorSpec, codes: NDArray[Any]) -> NDArray[Any]:
    info = np.iinfo(spec.dtype)
    narrow = spec.qmin > info.min or spec.qmax < info.max
    if narrow and codes.size and (codes.min() < spec.qmin or codes.max() > spec.qmax):
        raise ConfigError(f"input '{spec.name}' holds codes outside [{spec.qmin}, {spec.qmax}]")
    return codes

"""Conversion of ONNX nodes into operations: one table over the families."""

from collections.abc import Mapping
from typing import Final

from qcc.frontend.convert import conv, dense, elementwise, layout, movement, pointwise, pool, reduction, resize
from qcc.frontend.convert.base import Converter

CONVERTERS: Final[Mapping[str, Converter]] = {
    **conv.CONVERTERS,
    **dense.CONVERTERS,
    **elementwise.CONVERTERS,
    **layout.CONVERTERS,
    **movement.CONVERTERS,
    **pointwise.CONVERTERS,
    **pool.CONVERTERS,
    **reduction.CONVERTERS,
    **resize.CONVERTERS,
}

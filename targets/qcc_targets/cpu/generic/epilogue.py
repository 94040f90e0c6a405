"""The dyadic requantization in TensorIR: how every arithmetic kernel ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.ir.graph import Op
from qcc_targets.cpu.kernel import TVM_DTYPE


@dataclass(frozen=True, slots=True)
class Epilogue:
    """``clamp(total >> shift, qmin, qmax)`` as the result's type."""

    shift: int
    qmin: int
    qmax: int
    dtype: str

    @classmethod
    def of(cls, o: Op) -> Epilogue:
        """The epilogue that an integer operation asks for."""
        return cls(o.int_attr("shift"), o.int_attr("qmin"), o.int_attr("qmax"), TVM_DTYPE[o.result.type.dtype])

    def __call__(self, total: Any) -> Any:
        """The codes of ``total``, an int64 expression that holds acc * m + c (and r * mr)."""
        shifted = total >> wide(self.shift)
        return T.cast(T.max(T.min(shifted, wide(self.qmax)), wide(self.qmin)), self.dtype)


def wide(value: Any) -> Any:
    """``value`` as int64."""
    return T.int64(value) if isinstance(value, int) else T.cast(value, "int64")

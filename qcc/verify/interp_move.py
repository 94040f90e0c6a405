"""Operations of every stage: they move elements or choose among them, and never compute new ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.graph import Op
from qcc.verify.windows import Window

Array = NDArray[Any]
Rule = Callable[[Op, Sequence[Array]], Array]


def zero_code(o: Op) -> int:
    """What real zero is among the elements of the first operand: 0 for reals, else the zero point."""
    x = o.operands[0].type
    return x.quant.zero_point if x.quant is not None and x.dtype != "f32" else 0


def lowest(dtype: np.dtype[Any]) -> float:
    """The least element of ``dtype``: what a maximum over nothing gives."""
    return -np.inf if dtype.kind == "f" else int(np.iinfo(dtype).min)


def _constant(o: Op, xs: Sequence[Array]) -> Array:
    return o.array


def _max_pool2d(o: Op, xs: Sequence[Array]) -> Array:
    (x,) = xs
    best: Array | None = None
    for _, _, tap in Window.of(o).taps(x, lowest(x.dtype)):
        best = tap.copy() if best is None else np.maximum(best, tap, out=best)
    if best is None:
        raise VerifyError(f"{o}: empty kernel")
    return best


def _reduce_max(o: Op, xs: Sequence[Array]) -> Array:
    result: Array = np.max(xs[0], axis=o.ints_attr("axes"), keepdims=o.bool_attr("keepdims"))
    return result


def _concat(o: Op, xs: Sequence[Array]) -> Array:
    return np.concatenate(xs, axis=o.int_attr("axis"))


def _slice(o: Op, xs: Sequence[Array]) -> Array:
    part = slice(o.int_attr("start"), o.int_attr("stop"), o.int_attr("step"))
    return xs[0][(slice(None),) * o.int_attr("axis") + (part,)]


def _pad(o: Op, xs: Sequence[Array]) -> Array:
    """``values`` are reals, and codes at stage INTEGER: one, or one per index of axis 1."""
    (x,) = xs
    pads = o.ints_attr("pads")
    begins, ends = pads[: x.ndim], pads[x.ndim :]
    out = np.empty(tuple(b + d + e for b, d, e in zip(begins, x.shape, ends, strict=True)), x.dtype)
    values = np.array(o.attrs["values"]).astype(x.dtype)
    out[...] = values.reshape(()) if values.size == 1 else _extend(values, begins[1], ends[1], x.ndim)
    out[tuple(slice(b, b + d) for b, d in zip(begins, x.shape, strict=True))] = x
    return out


def _extend(values: Array, before: int, after: int, rank: int) -> Array:
    """Per-channel values shaped for broadcasting; added channels take their neighbour's value."""
    return np.pad(values, (before, after), mode="edge").reshape([-1 if a == 1 else 1 for a in range(rank)])


def _reshape(o: Op, xs: Sequence[Array]) -> Array:
    shape = o.ints_attr("shape")
    batch = o.operands[0].type.shape != xs[0].shape
    return xs[0].reshape((xs[0].shape[0], *shape[1:]) if batch else shape)


def _transpose(o: Op, xs: Sequence[Array]) -> Array:
    return np.ascontiguousarray(xs[0].transpose(o.ints_attr("perm")))


def _gather(o: Op, xs: Sequence[Array]) -> Array:
    return np.take(xs[0], o.ints_attr("indices"), axis=o.int_attr("axis"))


def _dilate2d(o: Op, xs: Sequence[Array]) -> Array:
    return dilate(xs[0], o.ints_attr("factors"), zero_code(o))


def dilate(x: Array, factors: Sequence[int], fill: float) -> Array:
    """``x`` [N, C, H, W] with ``factors - 1`` rows and columns of ``fill`` between its elements."""
    n, c, h, w = x.shape
    fh, fw = factors
    out = np.full((n, c, (h - 1) * fh + 1, (w - 1) * fw + 1), fill, x.dtype)
    out[:, :, ::fh, ::fw] = x
    return out


def _argmax(o: Op, xs: Sequence[Array]) -> Array:
    """The first index of the greatest element."""
    result: Array = np.argmax(xs[0], axis=o.int_attr("axis"), keepdims=o.bool_attr("keepdims")).astype(np.int64)
    return result


MOVE: Final[Mapping[str, Rule]] = {
    "constant": _constant,
    "max_pool2d": _max_pool2d,
    "reduce_max": _reduce_max,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
    "transpose": _transpose,
    "gather": _gather,
    "dilate2d": _dilate2d,
    "argmax": _argmax,
}

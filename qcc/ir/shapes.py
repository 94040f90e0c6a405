"""Result shapes of the operations, from operand shapes and attributes.

Each function takes an operation and returns its result's shape; ``BATCH`` passes through axis 0.
"""

from collections.abc import Sequence

from qcc.errors import VerifyError
from qcc.ir.graph import Op
from qcc.ir.types import BATCH

Shape = tuple[int, ...]


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Numpy's broadcasting. Raises VerifyError when two dimensions differ and neither is 1."""
    rank = max(map(len, shapes))
    out: list[int] = []
    for axis in range(rank):
        dims = {s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0} - {1}
        if len(dims) > 1:
            raise VerifyError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
        out.append(dims.pop() if dims else 1)
    return tuple(out)


def window(size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    """Number of window positions along one axis; ``pad`` is the sum of both sides."""
    return (size + pad - dilation * (kernel - 1) - 1) // stride + 1


def _require(o: Op, ok: bool, what: str) -> None:
    if not ok:
        raise VerifyError(f"{o}: {what}; operands {', '.join(str(v.type.shape) for v in o.operands)}")


def _positive(o: Op, shape: Shape) -> Shape:
    _require(o, all(d > 0 or (d == BATCH and a == 0) for a, d in enumerate(shape)), f"empty result {shape}")
    return shape


def _check_window(o: Op, kernel: Sequence[int]) -> None:
    """Raise VerifyError unless kernel, strides and dilations are positive pairs, and pads four, none negative."""
    pairs = (tuple(kernel), o.ints_attr("strides"), o.ints_attr("dilations"))
    _require(o, all(len(p) == 2 and min(p) > 0 for p in pairs), "kernel, strides and dilations must be positive pairs")
    _require(o, len(o.ints_attr("pads")) == 4 and min(o.ints_attr("pads")) >= 0, "pads must be four, none negative")


def elementwise(o: Op) -> Shape:
    return broadcast([v.type.shape for v in o.operands])


def same(o: Op) -> Shape:
    return o.operands[0].type.shape


def mapped(o: Op) -> Shape:
    shape = elementwise(o)
    _require(o, shape == o.operands[0].type.shape, "parameters may not enlarge the mapped tensor")
    return shape


def conv2d(o: Op) -> Shape:
    x, w = (v.type.shape for v in o.operands[:2])
    _require(o, len(x) == 4 and len(w) == 4, "conv2d takes [N,C,H,W] and [O,C/g,kh,kw]")
    groups = o.int_attr("groups")
    _require(o, groups > 0 and x[1] == w[1] * groups and w[0] % groups == 0, f"channels do not fit {groups} groups")
    _check_window(o, w[2:])
    top, left, bottom, right = o.ints_attr("pads")
    (sh, sw), (dh, dw) = o.ints_attr("strides"), o.ints_attr("dilations")
    rows = window(x[2], w[2], sh, top + bottom, dh)
    cols = window(x[3], w[3], sw, left + right, dw)
    return _positive(o, (x[0], w[0], rows, cols))


def conv_transpose2d(o: Op) -> Shape:
    x, w = (v.type.shape for v in o.operands[:2])
    _require(o, len(x) == 4 and len(w) == 4, "conv_transpose2d takes [N,C,H,W] and [C,O/g,kh,kw]")
    groups = o.int_attr("groups")
    _require(o, groups > 0 and x[1] == w[0] and w[0] % groups == 0, f"channels do not fit {groups} groups")
    _check_window(o, w[2:])
    top, left, bottom, right = o.ints_attr("pads")
    (sh, sw), (dh, dw), (eh, ew) = o.ints_attr("strides"), o.ints_attr("dilations"), o.ints_attr("output_padding")
    rows = (x[2] - 1) * sh + dh * (w[2] - 1) + 1 - top - bottom + eh
    cols = (x[3] - 1) * sw + dw * (w[3] - 1) + 1 - left - right + ew
    return _positive(o, (x[0], w[1] * groups, rows, cols))


def dense(o: Op) -> Shape:
    x, w = (v.type.shape for v in o.operands[:2])
    _require(o, len(x) >= 2 and len(w) == 2 and x[-1] == w[1], "dense takes [..., K] and [M, K]")
    return (*x[:-1], w[0])


def matmul(o: Op) -> Shape:
    a, b = (v.type.shape for v in o.operands[:2])
    _require(o, len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2], "matmul takes [..., M, K] and [..., K, N]")
    return (*broadcast([a[:-2], b[:-2]]), a[-2], b[-1])


def pool2d(o: Op) -> Shape:
    x = o.operands[0].type.shape
    _require(o, len(x) == 4, "pooling takes [N,C,H,W]")
    _check_window(o, o.ints_attr("kernel"))
    top, left, bottom, right = o.ints_attr("pads")
    if "ceil_pads" in o.attrs:
        below, beyond = o.ints_attr("ceil_pads")
        bottom, right = bottom + below, right + beyond
    (kh, kw), (sh, sw), (dh, dw) = o.ints_attr("kernel"), o.ints_attr("strides"), o.ints_attr("dilations")
    return _positive(o, (x[0], x[1], window(x[2], kh, sh, top + bottom, dh), window(x[3], kw, sw, left + right, dw)))


def reduced(o: Op) -> Shape:
    x = o.operands[0].type.shape
    axes = o.ints_attr("axes")
    _require(o, all(0 < a < len(x) or (a == 0 and x[0] != BATCH) for a in axes), f"bad axes {axes}")
    keep = o.bool_attr("keepdims")
    return tuple(1 if a in axes else d for a, d in enumerate(x) if keep or a not in axes)


def argmax(o: Op) -> Shape:
    x = o.operands[0].type.shape
    axis = o.int_attr("axis")
    _require(o, 0 < axis < len(x) or (axis == 0 and x[0] != BATCH), f"bad axis {axis}")
    return tuple(1 if a == axis else d for a, d in enumerate(x) if o.bool_attr("keepdims") or a != axis)


def concat(o: Op) -> Shape:
    shapes = [v.type.shape for v in o.operands]
    axis = o.int_attr("axis")
    first = shapes[0]
    _require(o, 0 <= axis < len(first) and first[axis] != BATCH, f"bad axis {axis}")
    rest = [s[:axis] + s[axis + 1 :] for s in shapes]
    _require(o, all(r == rest[0] for r in rest), f"shapes differ beside axis {axis}")
    return (*first[:axis], sum(s[axis] for s in shapes), *first[axis + 1 :])


def sliced(o: Op) -> Shape:
    x = o.operands[0].type.shape
    axis, start, stop, step = (o.int_attr(k) for k in ("axis", "start", "stop", "step"))
    _require(o, 0 <= axis < len(x) and x[axis] != BATCH, f"bad axis {axis}")
    _require(o, 0 <= start < stop <= x[axis] and step > 0, f"bad range {start}:{stop}:{step}")
    return (*x[:axis], len(range(start, stop, step)), *x[axis + 1 :])


def padded(o: Op) -> Shape:
    x = o.operands[0].type.shape
    pads = o.ints_attr("pads")
    _require(o, len(pads) == 2 * len(x) and min(pads, default=0) >= 0, f"bad pads {pads}")
    _require(o, x[0] != BATCH or pads[0] == pads[len(x)] == 0, "the batch cannot be padded")
    values = o.attrs["values"]
    fits = isinstance(values, tuple) and (len(values) == 1 or (len(x) > 1 and len(values) == x[1]))
    _require(o, fits, f"pad values {values} must be one, or one per channel")
    return tuple(d if d == BATCH else d + pads[a] + pads[a + len(x)] for a, d in enumerate(x))


def reshaped(o: Op) -> Shape:
    x, shape = o.operands[0].type.shape, o.ints_attr("shape")
    sizes = []
    for dims in (x, shape):
        size = 1
        for d in dims:
            size *= abs(d)
        sizes.append(size)
    _require(o, sizes[0] == sizes[1] and (BATCH in x) == (BATCH in shape), f"cannot take the shape {shape}")
    return shape


def transposed(o: Op) -> Shape:
    x, perm = o.operands[0].type.shape, o.ints_attr("perm")
    _require(o, sorted(perm) == list(range(len(x))), f"bad permutation {perm}")
    _require(o, x[0] != BATCH or perm[0] == 0, "the batch must stay at axis 0")
    return tuple(x[p] for p in perm)


def gathered(o: Op) -> Shape:
    x, axis, indices = o.operands[0].type.shape, o.int_attr("axis"), o.ints_attr("indices")
    _require(o, 0 <= axis < len(x) and x[axis] != BATCH, f"bad axis {axis}")
    _require(o, len(indices) > 0 and min(indices) >= 0 and max(indices) < x[axis], "indices out of range")
    return (*x[:axis], len(indices), *x[axis + 1 :])


def dilated(o: Op) -> Shape:
    n, c, h, w = o.operands[0].type.shape
    fh, fw = o.ints_attr("factors")
    _require(o, fh > 0 and fw > 0, f"bad factors {(fh, fw)}")
    return (n, c, (h - 1) * fh + 1, (w - 1) * fw + 1)


def resized(o: Op) -> Shape:
    n, c, h, w = o.operands[0].type.shape
    for size, axis in ((h, "h"), (w, "w")):
        low, high, frac = o.ints_attr(f"{axis}0"), o.ints_attr(f"{axis}1"), o.attrs[f"{axis}f"]
        _require(o, isinstance(frac, tuple) and len(low) == len(high) == len(frac) > 0, f"bad {axis} tables")
        _require(o, min(*low, *high) >= 0 and max(*low, *high) < size, f"{axis} indices out of range")
    return (n, c, len(o.ints_attr("h0")), len(o.ints_attr("w0")))

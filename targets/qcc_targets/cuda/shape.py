"""Calls of the device function templates that take a ``TensorShape`` (see ``device/shape.cuh``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.ir.packing import code_bits
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, View, pack, primitive
from qcc_targets.cuda.kernel import CudaKernel
from qcc_targets.cuda.operands import Operands, Walk


@dataclass(frozen=True, slots=True)
class Form:
    """A kernel's own form of its operands: columns padded, steps of its loop, offsets padded, weights packed.

    Results are stored whole ``vector`` bytes at a time where they lie so. The steps are shared among ``splits``.
    The kernel multiplies inputs that are ``more`` than they should be. A group of columns takes ``tiles`` tiles,
    a result ``width`` columns.
    """

    columns: int
    steps: int
    offsets: int
    weights: NDArray[np.generic]
    vector: int
    splits: int = 1
    more: int = 0
    tiles: int = 1
    width: int = 1

    @property
    def results(self) -> int:
        """The columns that have results, padded."""
        return self.columns // self.width

    @property
    def split_steps(self) -> int:
        return -(-self.steps // self.splits)


@dataclass(frozen=True, slots=True)
class DeviceCall:
    """A kernel's name, its device function with its leading template arguments, and its launch."""

    name: str
    function: str
    numbers: tuple[int, ...]
    blocks: int
    threads: int


def device_kernel(site: Site, o: Operands, form: Form, call: DeviceCall, *, halo: bool) -> CudaKernel:
    """The kernel whose threads all call one device function; with ``halo`` it writes the result's border, if it can."""
    border = _border(site.output) if halo else None
    blob = _constants(site, o, form, border or (0,) * 6)
    symbol = f"qcc::{call.function}<{', '.join([*map(str, call.numbers), *residual_types(site)])}>"
    kernel = calling(site, call.name, symbol, "xrcy", blob, call.blocks, call.threads)
    return replace(kernel, fills_halo=border is not None)


def residual_types(site: Site) -> tuple[str, str]:
    """Whether there is a residual, and the types of input, residual and result, as template arguments."""
    residual = site.view(4) if len(site.op.operands) > 4 else None
    views = (site.view(0), residual or site.view(0), site.output)
    return "true" if residual else "false", ", ".join(f"{v.tvm_dtype}_t" for v in views)


def calling(site: Site, name: str, symbol: str, takes: str, constants: bytes, blocks: int, threads: int) -> CudaKernel:
    """The kernel whose threads all call the device function ``symbol``.

    It ``takes`` the first input (x), the last (r), constants (c), output (y) and scratch (s), in this order.
    """

    def body(pointers: Pointers) -> None:
        given = {"x": pointers.inputs[0], "r": pointers.inputs[-1], "c": pointers.constants}
        given |= {"y": pointers.output, "s": pointers.scratch}
        with T.launch_thread("threadIdx.x", threads):
            T.evaluate(tirx.call_extern("void", symbol, *(given[one] for one in takes)))

    func = primitive(site.inputs, site.output, body, noalias=False)
    return CudaKernel(Kernel(name, func, constants), (blocks, 1, 1), (threads, 1, 1))


def weight_bits(site: Site) -> int:
    """The bits that the weights of ``site`` are stored in: 2, 4 or 8."""
    weights = site.op.operands[1]
    bits = code_bits(weights, site.array(1)) if weights.type.dtype == "i8" and not site.zero_point(1) else None
    return 8 if bits is None or bits > 4 else 4 if bits > 2 else 2


def _border(view: View) -> tuple[int, ...] | None:
    """The border in words of four bytes, and what each is to hold; None where pixels are not whole words."""
    places = (view.offset, *view.strides, view.channels) if view.channels_last else (1,)
    if not view.halo or view.external or any(n * view.itemsize % 4 for n in (*places[:2], *places[3:])):
        return None
    halo = (view.halo.top, view.halo.left, view.halo.bottom, view.halo.right)
    word = np.full(4 // view.itemsize, view.fill, view.tvm_dtype).view(np.int32)
    return (*halo, view.channels * view.itemsize // 4, int(word[0]))


def _constants(site: Site, o: Operands, form: Form, border: tuple[int, ...]) -> bytes:
    """A ``TensorShape`` and what it points to."""
    residual = site.view(4) if len(site.op.operands) > 4 else None
    offsets = np.array(o.offsets + (0,) * (form.offsets - len(o.offsets)), np.int32)
    arrays = [offsets, *_vectors(site, o, form.results, form.more), form.weights]
    numbers = [
        o.rows,
        o.columns,
        form.columns,
        form.steps,
        o.depth,
        form.splits,
        form.split_steps,
        form.tiles,
        o.columns // o.groups,
        o.group_step,
        o.plane,
        o.width,
        *o.x,
        *o.y,
        *o.r,
    ]
    numbers += [site.op.int_attr(k) for k in ("shift", "qmin", "qmax")]
    numbers += [_whole(site.output, o, o.y, form), residual is not None and _whole(residual, o, o.r, form)]
    numbers += border
    shape = np.zeros(len(numbers) + 6, np.int32)
    _, (_, first, *rest) = pack(shape, *arrays)
    *given, weights = rest
    start, scale, bias, r_scale = (*given, 0)[:4]
    shape[:] = [*numbers, first, start, scale, bias, r_scale, weights]
    return pack(shape, *arrays)[0]


def _whole(view: View, o: Operands, walk: Walk, form: Form) -> bool:
    places = walk if o.groups == 1 else (*walk, o.columns // o.groups)
    return not view.external and all(n * view.itemsize % form.vector == 0 for n in places)


def _vectors(site: Site, o: Operands, size: int, more: int) -> Iterator[NDArray[np.generic]]:
    """The accumulators' start, m, c, and mr where there is one: an entry per output channel, zeros up to ``size``.

    Accumulators start at -(zp + more) * Σw, which is exact modulo 2**32: padding holds the zero point, and the true
    sum fits 32 bits.
    """
    start = (-(site.zero_point(0) + more) * o.weights.astype(np.int64).sum(axis=1)).astype(np.int32)
    slots = (2, 3, 5) if len(site.op.operands) > 4 else (2, 3)
    given = (np.broadcast_to(site.array(slot).reshape(-1), start.shape) for slot in slots)
    width = size // o.groups - o.columns // o.groups
    return (np.pad(v.reshape(o.groups, -1), ((0, 0), (0, width))).reshape(-1) for v in (start, *given))

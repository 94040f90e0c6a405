"""The contract between the planner and the kernel templates: views, sites, kernels.

A kernel is a TensorIR function over raw pointers, compiled with the C calling convention:

    void kernel(x0, …, xn, constants, output, scratch)

- ``x0 … xn``: the storages of the operation's operands that are not constants, in operand order;
- ``constants``: the bytes of ``Kernel.constants``, packed at compile time, 64-byte aligned;
- ``output``: the storage of the result;
- ``scratch``: ``Kernel.scratch`` bytes of the call's own arena, 64-byte aligned, contents undefined.

Every pointer is to the *start of a storage*; the view says where in it the tensor lies. Views are
part of the code: two operations share a function when their functions are equal, so a template
must take everything but shapes, strides and offsets from ``constants``, unless code that is
specialized on a value is worth a copy.

A storage in the arena is 64-byte aligned and ``SLACK`` bytes before and after it may be read (not
written); what they hold is undefined. A view with ``external`` set lies in the caller's memory:
nothing outside the tensor may be read, and the pointer is only aligned to the element. Inputs of
convolutions, products and pooling are never external; outputs may be.

Memory that a kernel writes and reads back must be accessed through one element type: LLVM is told
that accesses of different types through one pointer do not alias (intrinsics are exempt).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.errors import TargetError
from qcc.ir.graph import Op
from qcc.ir.types import DTYPES

ALIGN: Final = 64
"""Bytes to which storages, constants and scratch are aligned."""

SLACK: Final = 256
"""Bytes that may be read before and after a storage of the arena, and after the constants."""

PLAIN: Final = "qcc.plain"
"""Attribute of functions that need no lowering of buffers, loops or index types: it would only take time."""

TVM_DTYPE: Final[Mapping[str, str]] = {
    "u8": "uint8",
    "i8": "int8",
    "u16": "uint16",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
}
"""TVM's spelling of the element types of an integer graph."""


@dataclass(frozen=True, slots=True)
class Halo:
    """Rows and columns around each plane that hold the fill value and may be read."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def covers(self, other: Halo) -> bool:
        return (
            self.top >= other.top
            and self.left >= other.left
            and self.bottom >= other.bottom
            and self.right >= other.right
        )

    def union(self, other: Halo) -> Halo:
        return Halo(
            max(self.top, other.top),
            max(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def __bool__(self) -> bool:
        return self != Halo()


@dataclass(frozen=True, slots=True)
class View:
    """Where the elements of a tensor lie in its storage; all distances in elements.

    ``shape`` is the logical shape with the batch filled in, ``strides`` has one entry per logical
    axis, ``offset`` leads from the storage's start to element (0, …, 0). Rank-4 tensors are
    logically [N, C, H, W] and normally lie channels-last: strides (sample, 1, row, pixel) with
    ``pixel >= C`` (a slice of a concatenation has ``pixel > C``) and ``row >= W * pixel``.
    ``halo`` is the border that holds ``fill`` (the zero point) around every plane.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    halo: Halo = Halo()
    fill: int = 0
    external: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.strides):
            raise TargetError(f"view {self.shape} has strides {self.strides}")

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def tvm_dtype(self) -> str:
        return TVM_DTYPE[self.dtype]

    @property
    def alignment(self) -> int:
        """Bytes to which the storage's pointer is known to be aligned."""
        return self.itemsize if self.external else ALIGN

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie densely in logical (row-major) order."""
        dense = row_major(self.shape)
        return all(s == d for s, d, n in zip(self.strides, dense, self.shape, strict=True) if n > 1)

    # Rank-4 names; meaningful where ``channels_last`` holds.

    @property
    def channels_last(self) -> bool:
        return self.rank == 4 and (self.strides[1] == 1 or self.shape[1] == 1)

    @property
    def samples(self) -> int:
        return self.shape[0]

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def height(self) -> int:
        return self.shape[2]

    @property
    def width(self) -> int:
        return self.shape[3]

    @property
    def sample_stride(self) -> int:
        return self.strides[0]

    @property
    def row_stride(self) -> int:
        return self.strides[2]

    @property
    def pixel_stride(self) -> int:
        return self.strides[3]

    def __str__(self) -> str:
        shape, strides = ("x".join(map(str, sizes)) for sizes in (self.shape, self.strides))
        return f"{self.dtype} {shape} by {strides}"

    def index(self, *position: Any) -> Any:
        """The element index in the storage of a logical position: ints or TensorIR expressions."""
        total: Any = self.offset
        for coordinate, stride, dim in zip(position, self.strides, self.shape, strict=True):
            if dim != 1 or not isinstance(coordinate, int) or coordinate:
                total = total + coordinate * stride
        return total


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense array in logical order."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclass(frozen=True, slots=True)
class Site:
    """One operation at its place: what a template is asked to build a kernel for.

    ``views`` has one entry per operand, None where the operand is a constant, whose array is then
    in ``arrays`` under the operand's name. Convolutions and pooling find a halo that covers their
    padding. A kernel computes the whole batch: ``samples`` may be more than one.
    """

    op: Op
    views: tuple[View | None, ...]
    output: View
    arrays: Mapping[str, NDArray[Any]]

    @property
    def inputs(self) -> tuple[View, ...]:
        """The views that the kernel gets pointers for, in operand order."""
        return tuple(v for v in self.views if v is not None)

    @property
    def spelling(self) -> str:
        """All that the speed of the kernel depends on, for a machine and its instruction set."""
        o = self.op
        parts = ["x".join(map(str, a.shape)) for a in self.arrays.values()]
        window = [f"{k} {'x'.join(map(str, o.ints_attr(k)))}" for k in ("strides", "dilations", "pads") if k in o.attrs]
        weights = [f"{v.type.quant.bits} bits" for v in o.operands[1:2] if v.type.quant is not None]
        views = [str(v) for v in (*self.inputs, self.output)]
        return "; ".join([o.kind, *views, " ".join(parts), *window, *weights])

    def view(self, slot: int) -> View:
        """The view of an operand that must not be constant. Raises TargetError."""
        if (view := self.views[slot]) is None:
            raise TargetError(f"{self.op}: operand %{self.op.operands[slot].name} must not be constant on this target")
        return view

    def array(self, slot: int) -> NDArray[Any]:
        """The array of an operand that must be constant. Raises TargetError."""
        name = self.op.operands[slot].name
        if name not in self.arrays:
            raise TargetError(f"{self.op}: operand %{name} must be a constant on this target")
        return self.arrays[name]

    def zero_point(self, slot: int) -> int:
        quant = self.op.operands[slot].type.quant
        return quant.zero_point if quant else 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """A compiled-to-be function with its constants.

    ``name`` is the template's, with what it was specialized on (``conv2d.generic``,
    ``conv1x1.amx``): it goes into the build report. ``inplace`` lists which of ``Site.inputs`` the
    output may overlay exactly (same address, same view); such a function must not be built with
    ``noalias``.
    """

    name: str
    func: tirx.PrimFunc
    constants: bytes = b""
    scratch: int = 0
    inplace: tuple[int, ...] = ()


Template = Callable[[Site, Any], "Kernel | None"]
"""``build(site, isa)``: a kernel, or None where the template does not fit."""


@dataclass(frozen=True, slots=True)
class Pointers:
    """The parameters of a kernel function, inside its body; ``buffer`` gives a flat typed access."""

    inputs: tuple[tirx.Var, ...]
    constants: tirx.Var
    output: tirx.Var
    scratch: tirx.Var


def buffer(pointer: tirx.Var, dtype: str, align: int = ALIGN, offset: int = 0) -> Any:
    """A flat buffer of TVM type ``dtype`` over ``pointer``, ``offset`` *bytes* into it.

    The extent is nominal: indices may run over the storage and its slack, negative ones included.
    """
    size = np.dtype(dtype).itemsize
    return T.decl_buffer(
        (1 << 30,), dtype, data=pointer, elem_offset=offset // size, align=min(align, ALIGN), layout=None
    )


def primitive(
    inputs: Sequence[View],
    output: View,
    body: Callable[[Pointers], None],
    *,
    noalias: bool = True,
    plain: bool = False,
) -> Any:
    """The TensorIR function of a kernel: ``body`` emits its statements through the IRBuilder.

    ``plain``: its buffers are flat and start at their pointers, its indices are int32, and it has
    no loops to vectorize.
    """
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name("kernel")
        T.func_attr({"tirx.noalias": noalias} | ({PLAIN: True} if plain else {}))
        pointers = Pointers(
            tuple(_pointer(f"x{i}", v.tvm_dtype) for i, v in enumerate(inputs)),
            _pointer("constants", "uint8"),
            _pointer("output", output.tvm_dtype),
            _pointer("scratch", "uint8"),
        )
        body(pointers)
    return ib.get()


def _pointer(name: str, dtype: str) -> tirx.Var:
    return T.arg(name, tirx.Var(name, PointerType(PrimType(dtype))))


def pack(*arrays: NDArray[Any]) -> tuple[bytes, tuple[int, ...]]:
    """The arrays one after another, each at a multiple of ``ALIGN`` bytes, and where each begins."""
    blob = bytearray()
    starts = []
    for array in arrays:
        blob.extend(b"\0" * (-len(blob) % ALIGN))
        starts.append(len(blob))
        blob.extend(np.ascontiguousarray(array).tobytes())
    return bytes(blob), tuple(starts)

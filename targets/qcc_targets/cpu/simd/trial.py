"""Run single kernels on arrays: for tests of the templates and for measuring them."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.ir.graph import Graph, Value
from qcc.ir.types import DTYPES
from qcc.runtime.cpu import request_amx
from qcc.verify.interp import evaluate_op
from qcc_targets.cpu import views
from qcc_targets.cpu.codegen import compile_object
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import ALIGN, SLACK, Kernel, Site, View
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.simd import build

_GUARD = 0xA5
"""What memory holds that no tensor claims, so that stray writes show."""


def aligned(size: int, fill: int = 0) -> NDArray[np.uint8]:
    """``size`` bytes at a 64-byte aligned address, with slack on both sides."""
    whole = np.full(size + 2 * SLACK + ALIGN, fill, np.uint8)
    start = -(whole.ctypes.data + SLACK) % ALIGN + SLACK
    return whole[start : start + size]


def place(view: View, array: NDArray[Any]) -> NDArray[np.uint8]:
    """A storage that holds ``array`` where ``view`` says, its fill in the halo, and guards elsewhere."""
    memory = aligned(views.extent(view) * view.itemsize, _GUARD)
    flat = memory.view(DTYPES[view.dtype])
    if view.halo:
        h = view.halo
        corner = view.offset - h.top * view.row_stride - h.left * view.pixel_stride
        shape = (view.samples, view.channels, view.height + h.top + h.bottom, view.width + h.left + h.right)
        _strided(flat, corner, shape, view.strides)[...] = view.fill
    _strided(flat, view.offset, view.shape, view.strides)[...] = array
    return memory


def fetch(view: View, memory: NDArray[np.uint8]) -> NDArray[Any]:
    """A copy of the tensor that lies in ``memory``."""
    return _strided(memory.view(DTYPES[view.dtype]), view.offset, view.shape, view.strides).copy()


def _strided(flat: NDArray[Any], start: int, shape: Sequence[int], strides: Sequence[int]) -> NDArray[Any]:
    steps = tuple(s * flat.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(flat[start:], tuple(shape), steps)


@dataclass(slots=True)
class Trial:
    """Kernels for one instruction set, compiled together into one library."""

    isa: Isa
    kernels: Sequence[Kernel]
    _library: ctypes.CDLL = field(init=False)

    def __post_init__(self) -> None:
        if "amx" in self.isa:
            request_amx()
        functions = {f"k{i}": k.func.with_attr("global_symbol", f"k{i}") for i, k in enumerate(self.kernels)}
        functions |= {f"r{i}": _repeated(f"k{i}", len(k.func.params)) for i, k in enumerate(self.kernels)}
        with tempfile.TemporaryDirectory(prefix="qcc-") as folder:
            path = Path(folder)
            compile_object(tvm.IRModule(functions), self.isa.target(), path / "k.o")
            subprocess.run(["ld", "-shared", "-o", str(path / "k.so"), str(path / "k.o")], check=True)
            self._library = ctypes.CDLL(str(path / "k.so"))

    def bind(self, number: int, inputs: Sequence[NDArray[np.uint8]], output: NDArray[np.uint8]) -> Call:
        """Kernel ``number`` with its memory."""
        kernel = self.kernels[number]
        constants, scratch = aligned(len(kernel.constants)), aligned(kernel.scratch, _GUARD)
        constants[...] = np.frombuffer(kernel.constants, np.uint8)
        memory = [*inputs, constants, output, scratch]
        function = getattr(self._library, f"r{number}")
        function.restype = None
        return Call(function, tuple(ctypes.c_void_p(m.ctypes.data) for m in memory), memory)

    def run(self, number: int, site: Site, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The result of kernel ``number``, built for ``site``, on ``arrays``.

        Raises AssertionError when it wrote anywhere but to its result.
        """
        blank = np.zeros(site.output.shape, DTYPES[site.output.dtype])
        output = place(site.output, blank)
        inputs = [place(v, a) for v, a in zip(site.inputs, arrays, strict=True)]
        self.bind(number, inputs, output)()
        result = fetch(site.output, output)
        if not np.array_equal(output, place(site.output, result)):
            raise AssertionError(f"{self.kernels[number].name} wrote outside its result")
        return result


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one kernel compares with the reference: elements of its result that differ."""

    op: str
    kernel: str
    differing: int


def judge(graph: Graph, isa: Isa, batch: int = 1, seed: int = 0) -> list[Verdict]:
    """Every kernel of an integer graph that a template of this package builds, on random codes.

    Each runs alone, between guards. Raises AssertionError when one writes outside its result.
    """
    rng = np.random.default_rng(seed)
    sites = [step.site for step in lower(graph, batch).steps]
    built = [(site, kernel) for site in sites if (kernel := build(site, isa)) is not None]
    trial = Trial(isa, [kernel for _, kernel in built])
    verdicts = []
    for number, (site, kernel) in enumerate(built):
        arrays = [_random_codes(view, value, rng) for view, value in _variables(site)]
        given = iter(arrays)
        operands = [site.arrays[v.name] if view is None else next(given) for v, view in _operands(site)]
        expected = arrays[0] if site.op.kind == "copy" else evaluate_op(site.op, operands)
        got = trial.run(number, site, arrays)
        verdicts.append(Verdict(site.op.kind, kernel.name, int((got != expected).sum())))
    return verdicts


def _operands(site: Site) -> list[tuple[Value, View | None]]:
    return list(zip(site.op.operands, site.views, strict=True))


def _variables(site: Site) -> list[tuple[View, Value]]:
    return [(view, value) for value, view in _operands(site) if view is not None]


def _random_codes(view: View, value: Value, rng: np.random.Generator) -> NDArray[Any]:
    """Codes of the value's grid, its extremes among them."""
    info, quant = np.iinfo(DTYPES[view.dtype]), value.type.quant
    low, high = (int(info.min), int(info.max)) if quant is None else (quant.qmin, quant.qmax)
    codes = rng.integers(low, high + 1, view.shape)
    extremes = rng.random(view.shape)
    return np.where(extremes < 0.1, low, np.where(extremes > 0.9, high, codes)).astype(DTYPES[view.dtype])


def _repeated(symbol: str, parameters: int) -> tirx.PrimFunc:
    """A function that calls kernel ``symbol`` as often as its last argument says."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(f"repeat_{symbol}")
        pointers = [T.arg(f"p{i}", tirx.Var(f"p{i}", PointerType(PrimType("uint8")))) for i in range(parameters)]
        times = T.arg("times", tirx.Var("times", "int32"))
        with T.serial(0, times):
            T.evaluate(tirx.call_extern("void", symbol, *pointers))
    func: tirx.PrimFunc = ib.get()
    return func.with_attr("global_symbol", f"r{symbol[1:]}")


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel with its arguments, ready to run."""

    function: Any
    arguments: tuple[ctypes.c_void_p, ...]
    memory: Sequence[NDArray[np.uint8]]

    def __call__(self, times: int = 1) -> None:
        """Run the kernel ``times`` times, back to back."""
        self.function(*self.arguments, ctypes.c_int32(times))

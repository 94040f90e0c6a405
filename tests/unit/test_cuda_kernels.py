"""The fast CUDA kernels, run without a GPU and checked for races, against the reference, bit for bit."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import TargetError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH, DTYPES, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.runtime.cuda_program import CUDA_PROGRAM, CudaProgram
from qcc.trial import trial_session
from qcc.verify.interp import evaluate
from qcc_targets.cuda import tensor
from qcc_targets.cuda.dot import row_words
from qcc_targets.cuda.network import assemble
from qcc_targets.cuda.target import CudaTarget
from qcc_targets.cuda.tensor import TILES, packed

U8 = Quant(8, False, (Dyadic.of(0.1),), 3)
I8 = Quant(8, True, (Dyadic.of(0.1),), -3)
I16 = Quant(16, True, (Dyadic.of(0.1),), -300)
U16 = Quant(16, False, (Dyadic.of(0.1),), 300)
SAMPLES = 3

Array = NDArray[Any]


class Net:
    """Layers with random weights whose results fill their range, all of them outputs."""

    def __init__(self) -> None:
        self.b = GraphBuilder("kernels", Stage.INTEGER)
        self.rng = np.random.default_rng(3)
        self.inputs: dict[str, Array] = {}
        self.outputs: list[Value] = []

    def input(self, name: str, shape: tuple[int, ...], dtype: str, quant: Quant) -> Value:
        codes = self.rng.integers(0, 1 << 8 * DTYPES[dtype].itemsize, (SAMPLES, *shape))
        self.inputs[name] = codes.astype(DTYPES[dtype])
        return self.b.input(name, (BATCH, *shape), dtype, quant)

    def layer(
        self,
        x: Value,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        residual: Value | None = None,
        quant: Quant = U8,
        bits: int = 8,
        keep: bool = True,
    ) -> Value:
        """A convolution, or a dense layer where ``x`` has two axes."""
        window = (kernel, kernel) if x.type.rank == 4 else ()
        limit = (1 << (bits - 1)) - 1
        shape = (outputs, x.type.shape[1] // groups, *window)
        codes = self.rng.integers(-limit, limit + 1, shape).astype(np.int8)
        w = self.b.constant(codes, "w", quant=Quant(bits, True, (Dyadic(1, 7),) * outputs, axis=0))
        deviation = 75 * max(limit, 1) * np.prod(shape[1:]) ** 0.5 * (256 if "16" in x.type.dtype else 1)
        span = quant.qmax - quant.qmin
        gain = 2**32 / deviation * span / 6
        m = self.b.constant(np.minimum(self.rng.uniform(0.3, 1, outputs) * gain, 2**31 - 1).astype(np.int32), "m")
        middle = (quant.qmax + quant.qmin) / 2 * 2**32
        c = self.b.constant((middle + self.rng.uniform(-1, 1, outputs) * span * 2**29).astype(np.int64), "c")
        operands = [x, w, m, c]
        if residual is not None:
            mr = self.rng.integers(1 << 28, 1 << 30, outputs).astype(np.int32)
            operands += [residual, self.b.constant(mr, "mr")]
        attrs: dict[str, Any] = {"shift": 32, "qmin": quant.qmin, "qmax": quant.qmax}
        if window:
            pad = (kernel // 2,) * 4
            attrs |= {"strides": (stride, stride), "pads": pad, "dilations": (1, 1), "groups": groups}
        y = self.b.op("iconv2d" if window else "idense", operands, quant=quant, **attrs)
        if keep:
            self.outputs.append(y)
        return y

    @property
    def graph(self) -> Graph:
        return self.b.graph(self.outputs)


def convolutions() -> Net:
    """Few and many channels, none a multiple of a tile; strides, residuals, element types, widths, halos."""
    n = Net()
    image, words = n.input("image", (3, 14, 13), "u8", U8), n.input("words", (3, 14, 13), "u16", U16)
    stem = n.layer(image, 70, keep=False)
    signed = n.layer(stem, 40, 1, quant=I8, keep=False)
    sum_ = n.layer(signed, 72, residual=n.layer(stem, 72, keep=False), keep=False)
    n.layer(sum_, 150, stride=2, quant=I8)
    wide = n.layer(sum_, 70, 1, residual=stem, quant=U16, bits=4)
    n.layer(wide, 33, quant=I8)
    n.layer(words, 40, stride=2)
    n.layer(n.layer(sum_, 40, 1, quant=I16), 34, quant=I16)
    n.layer(n.layer(sum_, 60, groups=3, quant=I16, keep=False), 120, groups=3, stride=2)
    n.layer(sum_, 96, groups=2, bits=4, residual=n.layer(sum_, 96, 1, keep=False))
    n.layer(sum_, 36, bits=2)
    n.layer(sum_, 36, 1, bits=3)
    pooled = n.b.op("max_pool2d", [sum_], kernel=(3, 3), strides=(2, 2), pads=(1,) * 4, dilations=(1, 1), quant=U8)
    n.layer(pooled, 20, 1)
    n.layer(n.layer(sum_, 72, groups=72, stride=2, keep=False), 72, groups=72, quant=I8)
    n.layer(n.layer(signed, 40, groups=40, residual=signed, quant=I8, keep=False), 24, 1)
    return n


def agree(n: Net, device: str, batch: int = SAMPLES) -> None:
    target = CudaTarget(arch=("compute_80",), batch=batch)
    wanted = evaluate(n.graph, n.inputs)
    assert all(len(np.unique(array)) > 25 for array in wanted.values())
    with trial_session(n.graph, target, device=device) as session:
        got = session.run_codes(n.inputs, SAMPLES)
    assert {k: int((got[k] != wanted[k]).sum()) for k in wanted} == dict.fromkeys(wanted, 0)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")


@needs_compiler
def test_convolutions_of_every_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = itertools.cycle(TILES)
    monkeypatch.setattr(tensor, "chosen", lambda rows, columns, itemsize: next(tiles))
    agree(convolutions(), "simt-racecheck")


@needs_compiler
def test_long_reductions_are_split() -> None:
    n = Net()
    x, words = n.input("x", (120, 6, 5), "u8", U8), n.input("words", (64, 6, 5), "u16", U16)
    y = n.layer(x, 120, residual=x, keep=False)
    n.layer(y, 70, quant=U16)
    n.layer(y, 33, stride=2, quant=I8, bits=4)
    n.layer(words, 36)
    launches = assemble(n.graph, SAMPLES).launches
    templates = [launch.template.rpartition(".")[2] for launch in launches if launch.op == "iconv2d"]
    assert templates == ["split", "sum"] * 4
    agree(n, "simt-racecheck")


@needs_compiler
@pytest.mark.parametrize("batch", [1, 2])
def test_dense_layers_of_few_rows(batch: int) -> None:
    n = Net()
    bytes_, words = n.input("bytes", (200,), "u8", U8), n.input("words", (301,), "u16", U16)
    for bits in (2, 3, 4, 8):
        n.layer(n.layer(bytes_, 72, bits=bits, quant=I8), 30, bits=bits)
        n.layer(words, 20, bits=bits)
    n.layer(bytes_, 200, residual=bytes_)
    agree(n, "simt", batch)


def test_layers_get_the_templates_that_they_should() -> None:
    launches = assemble(convolutions().graph, SAMPLES).launches
    templates = {launch.template.partition(".")[0] for launch in launches if launch.op != "copy"}
    assert templates == {"tensor", "depthwise", "max_pool2d", "fill_halo"}
    assert {launch.template for launch in launches} >= {"max_pool2d.words", "depthwise.dot"}
    # Only the halos of the two inputs, and of the pooled tensor's operand, have no producer that writes them.
    assert sum(launch.op == "fill_halo" for launch in launches) <= 4


def test_large_batches_take_large_tiles(tmp_path: Path) -> None:
    n = Net()
    n.layer(n.input("x", (256, 28, 28), "u8", U8), 256)
    templates = {b: [one.template for one in assemble(n.graph, b).launches if one.op == "iconv2d"] for b in (1, 64)}
    assert templates == {1: ["tensor.64x32"], 64: ["tensor.128x128"]}
    CudaTarget(arch=("compute_80",), batch=256).build(n.graph, PassContext(), tmp_path)
    assert CudaProgram.from_bytes((tmp_path / CUDA_PROGRAM).read_bytes()).batch == 256


@pytest.mark.parametrize(("dtype", "quant", "batch"), [("u8", U8, 1024), ("u16", U16, 512)])
def test_tensors_beyond_the_indices_are_refused(dtype: str, quant: Quant, batch: int) -> None:
    b = GraphBuilder("large", Stage.INTEGER)
    x = b.input("x", (BATCH, 64, 192, 192), dtype, quant)
    y = b.op("max_pool2d", [x], kernel=(2, 2), strides=(2, 2), pads=(0,) * 4, dilations=(1, 1), quant=quant)
    assert assemble(b.graph([y]), batch // 2 - 64).launches
    with pytest.raises(TargetError, match=r"a tensor of \d+ elements is beyond 32-bit indices: use a smaller batch"):
        assemble(b.graph([y]), batch)


def signed(codes: Array, bits: int) -> Array:
    return np.where(codes >> (bits - 1) & 1, codes - (1 << bits), codes)


@pytest.mark.parametrize("bits", [2, 4])
def test_packed_weights_hold_every_code(bits: int) -> None:
    rng = np.random.default_rng(bits)
    weights = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (8, 128)).astype(np.int8)
    words = packed(weights, bits).astype(np.int64)
    assert words.size * 8 == weights.size * bits
    parts = np.stack([signed(words >> bits * p & ((1 << bits) - 1), bits) for p in range(8 // bits)])
    # [part, step, …, column, lane byte]: the parts and halves of 64 codes that a step multiplies
    found = parts.reshape(2, 2, 2, 8, 16) if bits == 4 else parts.reshape(2, 2, 2, 8, 16).swapaxes(1, 2)
    order = (3, 1, 2, 0, 4) if bits == 4 else (3, 1, 0, 2, 4)
    np.testing.assert_array_equal(found.transpose(order).reshape(8, 128), weights)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_words_of_dense_weights_hold_every_code(bits: int) -> None:
    rng = np.random.default_rng(bits)
    weights = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (5, 300)).astype(np.int8)
    words = row_words(weights, bits).astype(np.int64)
    parts = np.stack([signed(words >> bits * p & ((1 << bits) - 1), bits) for p in range(8 // bits)], axis=3)
    np.testing.assert_array_equal(parts.reshape(5, -1)[:, :300], weights)

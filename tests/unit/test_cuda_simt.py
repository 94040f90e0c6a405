"""The SIMT runtime: what its operations mean, and which mistakes of kernels it finds."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import ArtifactError, MismatchError, TargetError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.passmgr.plugins import make_target
from qcc.runtime.cuda_program import CUDA_PROGRAM, Address, CudaProgram, Image, Launch
from qcc.runtime.program import Argument
from qcc.trial import target_engine
from qcc.verify.fuzz import fuzz
from qcc.verify.interp import evaluate
from qcc_targets.cuda.simt import library as simt_library
from qcc_targets.cuda.simt.library import compile_library
from qcc_targets.cuda.simt.network import SimtNetwork
from qcc_targets.cuda.source import HEADERS, header

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")

Array = NDArray[Any]

KERNELS = r"""
#define POINTERS uchar* __restrict__ x, uchar* __restrict__ y
#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(256) NAME(POINTERS)

template <bool SIGNED>
__device__ __forceinline__ void multiply(uchar *x, uchar *y) {
  uint32_t a[4], b[2];
  int c[4], lane = threadIdx.x;
  for (int i = 0; i < 4; ++i) a[i] = ((uint32_t *)x)[lane * 4 + i];
  for (int i = 0; i < 2; ++i) b[i] = ((uint32_t *)x)[128 + lane * 2 + i];
  for (int i = 0; i < 4; ++i) c[i] = ((int *)x)[192 + lane * 4 + i];
  if (SIGNED) qcc::mma_s8s8(c, a, b);
  else qcc::mma_u8s8(c, a, b);
  for (int i = 0; i < 4; ++i) ((int *)y)[lane * 4 + i] = c[i];
}
KERNEL(mma_u8) { multiply<false>(x, y); }
KERNEL(mma_s8) { multiply<true>(x, y); }
KERNEL(matrices) {
  alignas(16) __shared__ uchar rows[512];
  for (int i = 0; i < 16; ++i) rows[threadIdx.x * 16 + i] = x[threadIdx.x * 16 + i];
  __syncthreads();
  uint32_t r[4];
  qcc::ldmatrix_x4(r, rows + (31 - threadIdx.x) * 16);
  for (int i = 0; i < 4; ++i) ((uint32_t *)y)[threadIdx.x * 4 + i] = r[i];
}
KERNEL(unsynchronized_matrices) {
  alignas(16) __shared__ uchar rows[512];
  for (int i = 0; i < 16; ++i) rows[threadIdx.x * 16 + i] = x[threadIdx.x * 16 + i];
  uint32_t r[4];
  qcc::ldmatrix_x4(r, rows + threadIdx.x * 16);
  for (int i = 0; i < 4; ++i) ((uint32_t *)y)[threadIdx.x * 4 + i] = r[i];
}
KERNEL(dots) {
  const uint32_t *words = (uint32_t *)x;
  int i = threadIdx.x;
  ((int *)y)[i] = qcc::dot_u8s8(words[i], words[i + 32], words[i + 64]);
  ((int *)y)[i + 32] = qcc::dot_s8s8(words[i], words[i + 32], words[i + 64]);
}
KERNEL(lanes) {
  int *to = (int *)y, lane = threadIdx.x, value = lane * lane;
  to[lane] = __shfl_sync(~0u, value, lane + 3, 8);
  to[lane + 32] = __shfl_xor_sync(~0u, value, 5);
  to[lane + 64] = __shfl_down_sync(~0u, value, 3, 16);
  to[lane + 96] = __shfl_up_sync(~0u, value, 2);
  to[lane + 128] = __ballot_sync(~0u, lane % 3 == 0);
  to[lane + 160] = __any_sync(~0u, lane == 9) * 4 + __any_sync(~0u, lane > 31) * 2 + __all_sync(~0u, lane < 32);
}

template <bool BEFORE, bool BEHIND>
__device__ __forceinline__ void reverse(uchar *x, uchar *y) {
  __shared__ int values[2][256];
  int *to = (int *)y + blockIdx.x * 256, i = threadIdx.x;
  values[0][i] = ((int *)x)[blockIdx.x * 256 + i];
  if (BEFORE) __syncthreads();
  values[1][i] = values[0][255 - i];
  if (BEHIND) __syncthreads();
  to[i] = values[1][255 - i];
}
KERNEL(reversed) { reverse<true, true>(x, y); }
KERNEL(reversed_without_first) { reverse<false, true>(x, y); }
KERNEL(reversed_without_second) { reverse<true, false>(x, y); }

template <int OUTSTANDING, bool BARRIER>
__device__ __forceinline__ void stream(uchar *x, uchar *y) {
  alignas(16) __shared__ uchar stages[2][32 * 16];
  int lane = threadIdx.x, sum = 0;
  for (int step = 0; step < 9; ++step) {
    if (step < 8) qcc::cp_async<16>(&stages[step % 2][lane * 16], x + step * 512 + lane * 16);
    qcc::cp_commit();
    if (step) {
      qcc::cp_wait<OUTSTANDING>();
      __syncthreads();
      for (int i = 0; i < 16; ++i) sum += (step + i) * stages[(step - 1) % 2][(31 - lane) * 16 + i];
      if (BARRIER) __syncthreads();
    }
  }
  ((int *)y)[lane] = sum;
}
KERNEL(streamed) { stream<1, true>(x, y); }
KERNEL(streamed_too_early) { stream<2, true>(x, y); }
KERNEL(streamed_over_readers) { stream<1, false>(x, y); }

KERNEL(blocks_share) { ((int *)y)[threadIdx.x] = ((int *)x)[threadIdx.x]; }
KERNEL(beyond_output) { if (threadIdx.x == 77) y[4096] = 1; }
KERNEL(beyond_input) { y[threadIdx.x] = x[16384 + threadIdx.x]; }
KERNEL(into_input) { x[threadIdx.x] = 1; }
KERNEL(misaligned) { ((int *)y)[threadIdx.x] = *(int *)(x + 4 * threadIdx.x + 2); }
KERNEL(some_return) {
  if (threadIdx.x < 100) return;
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}
KERNEL(some_lanes) {
  if (threadIdx.x % 2) __syncwarp();
  else __syncthreads();
}
KERNEL(within_warp) {
  __shared__ int values[256];
  int i = threadIdx.x;
  values[i] = ((int *)x)[i];
  __syncwarp();
  ((int *)y)[i] = values[i ^ 31];
}
KERNEL(between_warps) {
  __shared__ int values[256];
  int i = threadIdx.x;
  values[i] = ((int *)x)[i];
  __syncwarp();
  ((int *)y)[i] = values[i ^ 32];
}
KERNEL(dynamic) {
  extern __shared__ __align__(1024) uchar buf_dyn_shmem[];
  int *values = (int *)buf_dyn_shmem, i = threadIdx.x;
  values[i] = ((int *)x)[i];
  __syncthreads();
  ((int *)y)[i] = values[255 - i];
}
"""

Mode = Literal["plain", "racecheck"]
Run = Callable[..., Array]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mode], Path]:
    """The library of all kernels above, compiled at its first use."""
    folder = tmp_path_factory.mktemp("simt")

    def compiled(mode: Mode) -> Path:
        path = folder / f"{mode}.so"
        if not path.exists():
            compile_library(header(HEADERS) + KERNELS, path, racecheck=mode == "racecheck")
        return path

    return compiled


@pytest.fixture
def run(library: Callable[[Mode], Path], tmp_path: Path) -> Run:
    """What a kernel writes: 4096 bytes from up to 16384."""

    def launch(
        mode: Mode, kernel: str, x: Array, threads: int = 32, blocks: int = 1, shared: int = 0, seed: int = 0
    ) -> Array:
        arguments = (Address(space="input"), Address(space="output"))
        grid, block = (blocks, 1, 1), (threads, 1, 1)
        one = Launch(
            kernel=kernel, grid=grid, block=block, shared=shared, arguments=arguments, op="o", result="y", template="t"
        )
        program = CudaProgram(
            batch=1,
            inputs=(Argument(name="x", shape=(16384,), dtype="uint8", batched=False),),
            outputs=(Argument(name="y", shape=(4096,), dtype="uint8", batched=False),),
            launches=(one,),
            arena=0,
            constants="c",
            source="s",
            images=(Image(arch="sm_80", file="i"),),
        )
        private = tmp_path / f"{kernel}-{mode}-{seed}.so"
        shutil.copy(library(mode), private)
        network = SimtNetwork(program, lambda name: b"", private, racecheck=mode == "racecheck", seed=seed)
        data = np.zeros(16384, np.uint8)
        data[: x.nbytes] = x.reshape(-1).view(np.uint8)
        return network.run({"x": data})["y"]

    return launch


def words(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 1 << 32, count, np.uint32)


@pytest.mark.parametrize(("kernel", "dtype"), [("mma_u8", np.uint8), ("mma_s8", np.int8)])
def test_mma_multiplies_the_fragments_of_the_ptx_isa(run: Run, kernel: str, dtype: Any) -> None:
    """PTX ISA, matrix fragments for mma.m16n8k32 with 8-bit operands, element by element."""
    x = words(320)
    a, b, c = np.zeros((16, 32), np.int64), np.zeros((32, 8), np.int64), np.zeros((16, 8), np.int64)
    in_a, in_b = x[:128].view(dtype).reshape(32, 16), x[128:192].view(np.int8).reshape(32, 8)
    in_c = x[192:320].view(np.int32).reshape(32, 4)
    for lane in range(32):
        group, in_group = lane >> 2, lane % 4
        for i in range(16):
            row = group if i < 4 or 8 <= i < 12 else group + 8
            a[row, in_group * 4 + (i & 3) + (16 if i >= 8 else 0)] = in_a[lane, i]
        for i in range(8):
            b[in_group * 4 + (i & 3) + (16 if i >= 4 else 0), group] = in_b[lane, i]
        for i in range(4):
            c[group if i < 2 else group + 8, in_group * 2 + (i & 1)] = in_c[lane, i]
    d = (a @ b + c).astype(np.int32)
    got = run("plain", kernel, x)[:512].view(np.int32).reshape(32, 4)
    for lane in range(32):
        for i in range(4):
            assert got[lane, i] == d[(lane >> 2) + (0 if i < 2 else 8), lane % 4 * 2 + (i & 1)]


def test_ldmatrix_hands_out_rows_by_the_lanes_that_name_them(run: Run) -> None:
    x = words(128)
    got = run("plain", "matrices", x)[:512].view(np.uint32).reshape(32, 4)
    rows = x.reshape(32, 4)[::-1]
    for lane in range(32):
        for i in range(4):
            assert got[lane, i] == rows[8 * i + lane // 4, lane % 4]


def test_dots_are_sums_of_four_products(run: Run) -> None:
    x = words(96)
    b, c = x[32:64].view(np.int8).reshape(32, 4).astype(np.int64), x[64:].view(np.int32)
    expected = [((x[:32].view(t).reshape(32, 4) * b).sum(1) + c).astype(np.int32) for t in (np.uint8, np.int8)]
    assert (run("plain", "dots", x)[:256].view(np.int32) == np.concatenate(expected)).all()


def test_lanes_exchange_and_vote(run: Run) -> None:
    lane = np.arange(32)
    expected = [
        (lane // 8 * 8 + (lane + 3) % 8) ** 2,
        (lane ^ 5) ** 2,
        np.where(lane % 16 + 3 < 16, lane + 3, lane) ** 2,
        np.where(lane >= 2, lane - 2, lane) ** 2,
        np.full(32, sum(1 << i for i in range(0, 32, 3))),
        np.full(32, 5),
    ]
    got = run("plain", "lanes", words(1))[: 6 * 128].view(np.uint32)
    assert (got == np.concatenate(expected)).all()


@pytest.mark.parametrize("mode", ["plain", "racecheck"])
def test_correct_kernels_pass_in_every_order(run: Run, mode: Mode) -> None:
    x = words(1024).view(np.int32)
    stages = x.view(np.uint8).reshape(8, 32, 16).astype(np.int64)
    weights = np.arange(1, 9)[:, None] + np.arange(16)
    sums = (stages[:, ::-1] * weights[:, None]).sum((0, 2))
    for seed in range(4):
        assert (run(mode, "reversed", x, 256, 4, seed=seed).view(np.int32) == x).all()
        assert (run(mode, "streamed", x, seed=seed)[:128].view(np.int32) == sums).all()
        assert (run(mode, "within_warp", x, 256, seed=seed)[:1024].view(np.int32) == x[np.arange(256) ^ 31]).all()
        assert (run(mode, "dynamic", x, 256, shared=1024, seed=seed)[:1024].view(np.int32) == x[255::-1]).all()


@pytest.mark.parametrize(
    ("wrong", "right", "threads", "blocks"),
    [
        ("reversed_without_first", "reversed", 256, 4),
        ("reversed_without_second", "reversed", 256, 4),
        ("streamed_too_early", "streamed", 32, 1),
        ("streamed_over_readers", "streamed", 32, 1),
        ("unsynchronized_matrices", "matrices", 32, 1),
    ],
)
def test_a_missing_barrier_or_wait_shows_in_the_bits_and_as_a_race(
    run: Run, wrong: str, right: str, threads: int, blocks: int
) -> None:
    x = words(1024)
    bits = [run("plain", name, x, threads, blocks) for name in (wrong, right)]
    written = 4 * threads * blocks * (4 if "matrices" in right else 1)
    assert (bits[0][:written] != bits[1][:written]).any()
    with pytest.raises(MismatchError, match=r"^\w+, which computes y: block .*: race: .* of shared memory"):
        run("racecheck", wrong, x, threads, blocks)
    run("racecheck", right, x, threads, blocks)


@pytest.mark.parametrize(
    ("kernel", "threads", "blocks", "message"),
    [
        ("between_warps", 256, 1, "race: thread .* of shared memory, which thread .*, with no barrier"),
        ("blocks_share", 32, 2, "race: .* global memory, which another block writes"),
        ("beyond_output", 128, 1, "thread 77 writes 1 bytes outside of all memory"),
        ("beyond_input", 128, 1, "reads 1 bytes outside of all memory"),
        ("into_input", 32, 1, "writes to constants or inputs"),
        ("misaligned", 32, 1, "accesses 4 bytes at an address that is no multiple"),
        ("dynamic", 256, 1, "writes beyond the 0 bytes of dynamic shared memory"),
    ],
)
def test_the_race_check_finds(run: Run, kernel: str, threads: int, blocks: int, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        run("racecheck", kernel, words(1024), threads, blocks)


@pytest.mark.parametrize(
    ("kernel", "threads", "message"),
    [
        ("some_return", 256, "156 threads wait at a barrier that 100 threads never reach"),
        ("some_lanes", 32, "16 threads wait for lanes of their warps that never come: 16 are at a barrier"),
        ("matrices", 16, "ldmatrix in a warp of 16 lanes"),
    ],
)
def test_threads_that_wait_for_ever_are_an_error(run: Run, kernel: str, threads: int, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        run("plain", kernel, words(128), threads)


def test_a_kernel_that_the_source_lacks_is_named(run: Run) -> None:
    with pytest.raises(ArtifactError, match="the source holds no kernel 'nothing'"):
        run("plain", "nothing", words(1))


def test_what_cannot_be_compiled_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match=r"g\+\+ failed on the generated code: .*error: .*nonsense"):
        compile_library("nonsense", tmp_path / "x.so")
    large = 'extern "C" __global__ void k(volatile int *y) { volatile int a[9999]; a[*y] = 1; *y = a[*y + 1]; }'
    with pytest.raises(TargetError, match="frame size"):
        compile_library(large, tmp_path / "x.so")
    monkeypatch.setattr(simt_library, "COMPILER", "no-such-compiler")
    with pytest.raises(TargetError, match=r"no C\+\+ compiler: .* needs 'no-such-compiler' on the PATH"):
        compile_library("", tmp_path / "x.so")


def convolution() -> Graph:
    """3 × 3, 32 to 40 channels, a residual added: all barriers, and rows and columns that fill no tile."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("convolution", Stage.INTEGER)
    grid = Quant(8, False, (Dyadic(1, 0),), 0)
    x = b.input("x", (BATCH, 32, 7, 9), "u8", grid)
    r = b.input("r", (BATCH, 40, 7, 9), "u8", grid)
    w = b.constant(rng.integers(-127, 128, (40, 32, 3, 3), np.int8), "w")
    m = b.constant(rng.integers(1 << 18, 1 << 20, 40, np.int32), "m")
    c = b.constant(np.full(40, 100 << 32, np.int64), "c")
    k = b.constant(np.full(40, 1 << 30, np.int32), "k")
    fields: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}
    y = b.op("iconv2d", (x, w, m, c, r, k), name="y", quant=grid, shift=32, qmin=0, qmax=255, **fields)
    return b.graph([y])


def test_a_barrier_or_wait_removed_from_a_generated_kernel_is_found(tmp_path: Path) -> None:
    """By the race check, whichever it is; and by the bits, too."""
    graph = convolution()
    make_target("cuda", {"arch": "compute_75"}).build(graph, PassContext(), tmp_path)
    program = CudaProgram.from_bytes((tmp_path / CUDA_PROGRAM).read_bytes())
    source = (tmp_path / program.source).read_text()
    assert "tensor.32x32" in [launch.template for launch in program.launches]
    rng = np.random.default_rng(1)
    inputs = {v.name: rng.integers(0, 256, (1, *v.type.shape[1:]), np.uint8) for v in graph.inputs}
    expected = evaluate(graph, inputs)["y"]

    def outputs(text: str, racecheck: bool) -> Array:
        library = tmp_path / f"{len(list(tmp_path.iterdir()))}.so"
        compile_library(text, library, racecheck=racecheck)
        read = (tmp_path / program.constants).read_bytes
        return SimtNetwork(program, lambda _: read(), library, racecheck=racecheck).run(inputs)["y"]

    assert (outputs(source, True) == expected).all()
    body = source.index("tensor_tile(")
    waits = list(re.compile(r"(__syncthreads|cp_wait<STAGES - 2>)\(\)").finditer(source, body))
    assert len(waits) == 5
    differing = []
    for number, wait in enumerate(waits):
        broken = source[: wait.start()] + source[wait.end() :]
        with pytest.raises(MismatchError, match=r"race: .* of shared memory"):
            outputs(broken, True)
        if number < 2:  # those in the loop; they cost time
            differing.append((outputs(broken, False) != expected).sum())
    assert all(differing)


@pytest.mark.parametrize(("device", "count"), [("simt", 6), ("simt-racecheck", 4)])
def test_random_graphs_agree_with_the_reference(device: str, count: int) -> None:
    target = make_target("cuda", {"arch": "compute_75"})
    report = fuzz(count, 11, {device: target_engine(target, device)})
    assert not report.failures, "\n".join(map(str, report.failures))
    assert report.refused[device] == 0

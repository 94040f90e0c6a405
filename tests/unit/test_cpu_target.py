"""The CPU target as a whole: what it builds, how the runtime treats it, and what it refuses."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.errors import ArtifactError, TargetError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.runtime.program import PROGRAM, Program
from qcc.runtime.tvm_network import Network
from qcc.verify.interp import evaluate
from qcc_targets.cpu.child import Limits
from qcc_targets.cpu.codegen import compile_object
from qcc_targets.cpu.compiler import Compiler, Unit
from qcc_targets.cpu.disassembly import float_instructions, float_lines
from qcc_targets.cpu.isa import LEVELS
from qcc_targets.cpu.lowering import COPY, FILL_HALO, Lowered, lower
from qcc_targets.cpu.memory import plan
from qcc_targets.cpu.network import assemble
from qcc_targets.cpu.select import select
from qcc_targets.cpu.target import CpuTarget
from qcc_targets.cpu.trial import compile_graph, run

LIBRARY = "network-avx2.so"
FILES = {LIBRARY, "constants-avx2.bin", "border-avx2.so", "kernels.json", PROGRAM, "network.h"}
U8 = Quant(8, False, (Dyadic.of(0.1),), 3)


def conv(b: GraphBuilder, x: Value, outputs: int, kernel: int = 3, residual: Value | None = None) -> Value:
    rng = np.random.default_rng(outputs)
    w = b.constant(rng.integers(-127, 128, (outputs, x.type.shape[1], kernel, kernel)).astype(np.int8), "w")
    m = b.constant(rng.integers(1 << 20, 1 << 23, outputs).astype(np.int32), "m")
    c = b.constant(rng.integers(0, 1 << 40, outputs).astype(np.int64), "c")
    operands = [x, w, m, c]
    if residual is not None:
        operands += [residual, b.constant(np.full(outputs, 1 << 31 - 2, np.int32), "mr")]
    pad = kernel // 2
    window: dict[str, Any] = {"strides": (1, 1), "pads": (pad,) * 4, "dilations": (1, 1), "groups": 1}
    return b.op("iconv2d", operands, quant=U8, shift=32, qmin=0, qmax=255, **window)


def network() -> Graph:
    """Convolutions, a residual, a concatenation, a pooling, a dense layer; two outputs."""
    b = GraphBuilder("net", Stage.INTEGER)
    x = b.input("x", (BATCH, 3, 9, 11), "u8", U8)
    y = conv(b, x, 12)
    y = conv(b, y, 12, residual=y)
    z = b.op("concat", [conv(b, y, 12, 1), conv(b, y, 12, 3)], axis=1, quant=U8)
    pool = b.op("reduce_max", [z], axes=(2, 3), keepdims=False, quant=U8)
    return b.graph([pool, z])


def small() -> Graph:
    b = GraphBuilder("small", Stage.INTEGER)
    x = b.input("x", (BATCH, 3, 9, 11), "u8", U8)
    return b.graph([b.op("reduce_max", [x], axes=(2, 3), keepdims=False, quant=U8)])


def batch(samples: int) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(1).integers(0, 256, (samples, 3, 9, 11)).astype(np.uint8)}


def same(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> bool:
    return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    yield Compiler()


@pytest.fixture(scope="module")
def loaded(compiler: Compiler) -> Network:
    return compile_graph(network(), "native", compiler=compiler)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of one build of ``network``."""
    return build(CpuTarget(isa=("avx2",)), tmp_path_factory.mktemp("one"))


def build(target: CpuTarget, folder: Path) -> Path:
    files = target.build(network(), PassContext(), folder)
    assert {f.name for f in files} == FILES
    return folder


def test_two_builds_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    build(CpuTarget(isa=("avx2",)), tmp_path)
    for name in sorted(FILES):
        assert (built / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_library_holds_no_floating_point_instruction(built: Path) -> None:
    assert float_instructions(built / LIBRARY) == []


def test_floating_point_instructions_are_found() -> None:
    source = getattr(math, "__file__", None)
    if source is None:
        pytest.skip("this Python's math module is no library of its own")
    assert len(float_instructions(Path(source))) > 100


@pytest.mark.parametrize(
    ("line", "is_float"),
    [
        ("  1: vaddps %zmm0,%zmm1,%zmm2", True),
        ("  1: cvttsd2si %xmm0,%eax", True),
        ("  1: vfmadd231ps %ymm0,%ymm1,%ymm2", True),
        ("  1: fldl (%rax)", True),
        ("  1: tdpbf16ps %tmm0,%tmm1,%tmm2", True),
        ("  1: vmovups %zmm0,(%rax)", False),
        ("  1: vpaddd %zmm0,%zmm1,%zmm2", False),
        ("  1: tdpbusd %tmm0,%tmm1,%tmm2", False),
        ("  1: vxorps %xmm0,%xmm0,%xmm0", False),
        ("  1: cmpl $0x3,%eax", False),
        ("  1: divl %ecx", False),
    ],
)
def test_mnemonics_are_told_apart(line: str, is_float: bool) -> None:
    assert bool(float_lines(line)) == is_float


def test_a_kernel_with_floats_does_not_compile(tmp_path: Path) -> None:
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name("half")
        pointer = T.arg("x", tirx.Var("x", PointerType(PrimType("float32"))))
        data = T.decl_buffer((4,), "float32", data=pointer, layout=None)
        T.buffer_store(data, data[0] * T.float32(0.5), [0])
    module = tvm.IRModule({"half": ib.get().with_attr("global_symbol", "half")})
    with pytest.raises(TargetError, match="floating point"):
        compile_object(module, LEVELS["generic"].target(), tmp_path / "half.o")


def test_only_the_entry_points_are_exported(built: Path) -> None:
    if (nm := shutil.which("nm")) is None:
        pytest.skip("no nm here")
    listing = subprocess.run([nm, "-D", "--defined-only", str(built / LIBRARY)], capture_output=True, text=True).stdout
    names = {line.split()[-1] for line in listing.splitlines()}
    assert names == {"qcc_network", "qcc_peak", "qcc_profile", "qcc_sizes"}


def test_a_library_needs_no_other(built: Path) -> None:
    if (nm := shutil.which("nm")) is None:
        pytest.skip("no nm here")
    for name in (LIBRARY, "border-avx2.so"):
        listing = subprocess.run([nm, "-D", "--undefined-only", str(built / name)], capture_output=True, text=True)
        assert not listing.stdout.split()


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_any_batch_runs(loaded: Network, samples: int) -> None:
    assert same(run(loaded, batch(samples)), evaluate(network(), batch(samples)))


def image(b: GraphBuilder) -> Value:
    return b.input("x", (BATCH, 3, 9, 11), "u8", U8)


def passed_through(b: GraphBuilder) -> list[Value]:
    return [image(b)]


def views_of_the_input(b: GraphBuilder) -> list[Value]:
    x = image(b)
    rows = b.op("transpose", [x], perm=(0, 2, 3, 1), quant=U8)
    return [rows, b.op("reshape", [rows], shape=(BATCH, 297), quant=U8), x]


def views_of_an_output(b: GraphBuilder) -> list[Value]:
    y = b.op("reduce_max", [image(b)], axes=(1, 2, 3), keepdims=False, quant=U8)
    return [y, b.op("reshape", [y], shape=(BATCH, 1, 1), quant=U8)]


def constants(b: GraphBuilder) -> list[Value]:
    table = b.constant(np.arange(6).astype(np.uint8).reshape(2, 3), "k", quant=U8)
    image(b)
    return [table, b.op("transpose", [table], perm=(1, 0), quant=U8)]


def without_a_batch(b: GraphBuilder) -> list[Value]:
    x = b.input("y", (4, 6), "u8", U8)
    return [
        b.op("reduce_max", [x], axes=(0, 1), keepdims=False, quant=U8),
        b.op("transpose", [x], perm=(1, 0), quant=U8),
        b.op("reshape", [b.op("transpose", [x], perm=(1, 0), quant=U8)], shape=(8, 3), quant=U8),
    ]


@pytest.mark.parametrize("samples_per_call", [1, 2])
@pytest.mark.parametrize("make", [passed_through, views_of_the_input, views_of_an_output, constants, without_a_batch])
def test_graphs_at_the_edge(
    make: Callable[[GraphBuilder], list[Value]], samples_per_call: int, compiler: Compiler
) -> None:
    b = GraphBuilder("edge", Stage.INTEGER)
    graph = b.graph(make(b))
    inputs = batch(3) if graph.inputs[0].name == "x" else {"y": np.arange(24, dtype=np.uint8).reshape(4, 6)}
    assert same(run(compile_graph(graph, "generic", samples_per_call, compiler), inputs), evaluate(graph, inputs))


def test_a_library_for_larger_batches(compiler: Compiler) -> None:
    quad = compile_graph(network(), "generic", 4, compiler)
    for samples in (1, 4, 6):
        assert same(run(quad, batch(samples)), evaluate(network(), batch(samples)))


def test_threads_do_not_disturb_each_other(loaded: Network) -> None:
    inputs = [{"x": np.roll(batch(2)["x"], i)} for i in range(16)]
    expected = [evaluate(network(), one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda one: run(loaded, one), inputs * 8))
    assert all(same(got, want) for got, want in zip(results, expected * 8, strict=True))


def test_arrays_of_any_alignment_run(loaded: Network) -> None:
    expected = evaluate(network(), batch(1))
    for shift in (1, 3, 64):
        room = np.zeros(400 + shift, np.uint8)
        x = room[shift : shift + 297].reshape(1, 3, 9, 11)
        x[...] = batch(1)["x"]
        assert same(run(loaded, {"x": x}), expected)


def test_a_broken_library_is_refused(built: Path, tmp_path: Path) -> None:
    program = Program.from_bytes((built / PROGRAM).read_bytes())
    broken = tmp_path / LIBRARY
    broken.write_bytes(b"no library")
    with pytest.raises(ArtifactError, match="does not load"):
        Network(program, program.levels[0], broken, np.zeros(64, np.uint8))


def test_a_crashing_compiler_is_an_error_and_the_next_job_runs(compiler: Compiler, tmp_path: Path) -> None:
    """LLVM aborts the process where an instruction set lacks an instruction."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name("tiles")
        T.evaluate(tirx.call_llvm_intrin("void", "llvm.x86.tilezero", tirx.IntImm("int8", 0)))
    with pytest.raises(TargetError, match="killed by SIGABRT"):
        compiler.library([Unit({"tiles": ib.get()})], ("tiles",), LEVELS["generic"], tmp_path / LIBRARY)
    assert same(run(compile_graph(small(), "generic", compiler=compiler), batch(1)), evaluate(small(), batch(1)))


@pytest.mark.parametrize(
    ("limits", "ending", "complaint"),
    [
        (Limits(seconds=1), lambda *_, **__: sum(iter(int, 1)), "killed by SIG"),
        (Limits(memory=1 << 20), lambda *_, **__: bytearray(1 << 30), "MemoryError"),
    ],
)
def test_a_compilation_that_takes_too_much_is_stopped(
    limits: Limits, ending: Callable[..., Any], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcc_targets.cpu.compiler.compile_object", ending)
    with pytest.raises(TargetError, match=f"native compilation failed: {complaint}"):
        compile_graph(small(), "generic", compiler=Compiler(limits))


def test_without_a_linker_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="binutils"):
        compile_graph(network(), "generic", compiler=Compiler(Limits(processes=1)))


def kinds(lowered: Lowered) -> list[str]:
    return [step.site.op.kind for step in lowered.steps]


def test_contractions_read_a_copy_of_the_callers_memory() -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 8, 1, 1), "u8", U8)
    y = conv(b, x, 8, 1)
    z = conv(b, y, 8, 1, residual=x)
    lowered = lower(b.graph([y, z]))
    assert kinds(lowered) == [COPY, "iconv2d", "iconv2d", COPY]
    for step in lowered.steps:
        if step.site.op.kind == "iconv2d":
            assert not any(view.external for view in step.site.inputs)


def test_a_concatenation_is_written_in_place() -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 5, 5, 4), "u8", U8)
    x = b.op("transpose", [x], perm=(0, 3, 1, 2), quant=U8)
    y = b.op("concat", [conv(b, x, 8, 1), conv(b, x, 8, 1)], axis=1, quant=U8)
    rows = b.op("transpose", [y], perm=(0, 2, 3, 1), quant=U8)
    assert kinds(lower(b.graph([rows]))) == [COPY, "iconv2d", "iconv2d"]


def test_padding_costs_a_border_not_a_copy() -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 4, 1, 1), "u8", U8)
    y = conv(b, conv(b, x, 8, 1), 8, 3)
    assert kinds(lower(b.graph([y]))) == [COPY, FILL_HALO, "iconv2d", "iconv2d"]


def test_equal_layers_share_one_function() -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    y = conv(b, b.input("x", (BATCH, 8, 6, 6), "u8", U8), 8)
    for _ in range(5):
        y = conv(b, y, 8)
    network = assemble(lower(b.graph([y])), LEVELS["generic"])
    called = [row.function for row in network.report if row.op == "iconv2d"]
    assert len(called) == 6 and len(set(called[:-1])) == 1


def test_a_dying_residual_is_overwritten() -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    x = conv(b, b.input("x", (BATCH, 8, 16, 16), "u8", U8), 8, 1)
    y = conv(b, conv(b, x, 8, 1), 8, 1, residual=x)
    lowered = lower(b.graph([conv(b, y, 2, 1)]))
    memory = plan(lowered, [select(step.site, LEVELS["generic"]) for step in lowered.steps])
    add = next(step for step in lowered.steps if len(step.inputs) == 2)
    assert memory.storages[add.output] == memory.storages[add.inputs[1]]


def test_a_residual_that_is_also_the_input_is_not_overwritten() -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    x = conv(b, b.input("x", (BATCH, 8, 16, 16), "u8", U8), 8, 1)
    lowered = lower(b.graph([conv(b, conv(b, x, 8, 3, residual=x), 2, 1)]))
    memory = plan(lowered, [select(step.site, LEVELS["generic"]) for step in lowered.steps])
    add = next(step for step in lowered.steps if len(step.inputs) == 2)
    assert memory.storages[add.output] != memory.storages[add.inputs[1]]

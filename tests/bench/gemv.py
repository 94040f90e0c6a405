# ruff: noqa: T201 - a measurement prints
"""A matrix-vector product with weights of 8, 4 and 2 bits, beside onnxruntime's MatMulNBits.

    python tests/bench/gemv.py [--size 4096] [--rounds 60] [--isa native]

One thread. All are called in turn within every round, in a new order each time. ``cold``: before
each call a buffer larger than the last-level cache is read and written, so that weights come from
memory. ``warm``: the same call again, so that weights come from where they fit. A row gives the
median and the least time of a call in microseconds, and the ratio of its median to that of 4 bits.
Ours are called as an artifact's library is; results are checked against the reference first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import Dyadic, Quant
from qcc.runtime.cpu import processor_flags
from qcc.verify.interp import evaluate
from qcc_targets.cpu.compiler import Compiler
from qcc_targets.cpu.trial import compile_graph

Call = Callable[[], object]

_FLUSH_BYTES: Final = 256 << 20
_GROUPS: Final = (128, 32)
"""Inputs that share a scale in onnxruntime's weights."""


def product(size: int, bits: int, rng: np.random.Generator) -> Graph:
    """From x u8 to y u8, both [1, size]: y =  requantized W x, for per-channel weights of ``bits``."""
    top = 1 << (bits - 1)
    b = GraphBuilder(f"gemv{bits}", Stage.INTEGER)
    unit = Quant(8, False, (Dyadic(1, 4),), 128)
    x = b.input("x", (1, size), "u8", unit)
    codes = rng.integers(-top, top, (size, size), dtype=np.int8)
    w = b.constant(codes, "w", quant=Quant(bits, True, (Dyadic(1, 7),) * size, axis=0))
    gain = int(2**32 * 40 / (75 * 0.6 * top * size**0.5))
    m = b.constant(np.full(size, gain, np.int32), "m")
    c = b.constant(np.full(size, 128 << 32, np.int64), "c")
    return b.graph([b.op("idense", [x, w, m, c], quant=unit, shift=32, qmin=0, qmax=255)])


def ours(graph: Graph, codes: NDArray[np.uint8], isa: str, compiler: Compiler) -> Call:
    """A call of the compiled product, whose result is the reference's."""
    network = compile_graph(graph, isa, compiler=compiler)
    y = graph.outputs[0].name
    inputs, outputs = {"x": codes}, {y: np.empty(codes.shape, np.uint8)}

    def call() -> None:
        network.call(inputs, outputs, 0, 1)

    call()
    if not np.array_equal(outputs[y], evaluate(graph, inputs)[y]):
        raise SystemExit(f"{graph.name} differs from the reference")
    return call


def theirs(size: int, group: int, rng: np.random.Generator) -> Call:
    """A call of onnxruntime's product of float inputs with 4-bit weights in groups, computed in int8."""
    blocks = size // group
    packed = rng.integers(0, 256, (size, blocks, group // 2), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.02, size * blocks).astype(np.float32)
    attrs = {"K": size, "N": size, "bits": 4, "block_size": group, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attrs)
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name in "xy"]
    stored = [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scales, "s")]
    graph = helper.make_graph([node], "gemv", border[:1], border[1:], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = {"x": rng.standard_normal((1, size)).astype(np.float32)}
    return lambda: session.run(None, x)


def measure(calls: Mapping[str, Call], rounds: int, rng: np.random.Generator) -> dict[str, dict[str, list[float]]]:
    """Microseconds of every call, by name, cold and warm."""
    flush = np.zeros(_FLUSH_BYTES // 8, np.int64)
    times: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in calls}
    for _ in range(rounds):
        for number in rng.permutation(len(calls)):
            name = list(calls)[number]
            np.add(flush, 1, out=flush)
            for state in ("cold", "warm"):
                start = time.perf_counter()
                calls[name]()
                times[name][state].append(1e6 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--isa", default="native")
    options = parser.parse_args()
    rng, compiler = np.random.default_rng(0), Compiler()
    codes = rng.integers(0, 256, (1, options.size), dtype=np.uint8)
    calls = {
        f"ours, {bits} bits": ours(product(options.size, bits, rng), codes, options.isa, compiler) for bits in (8, 4, 2)
    }
    calls |= {f"MatMulNBits, 4 bits, groups of {g}": theirs(options.size, g, rng) for g in _GROUPS}
    features = processor_flags() & {"avx2", "avx_vnni", "avx512_vnni", "avx512vbmi", "amx_int8"}
    print(
        f"1 x {options.size} x {options.size}, isa {options.isa}, {options.rounds} rounds; {' '.join(sorted(features))}"
    )
    times = measure(calls, options.rounds, rng)
    for state in ("cold", "warm"):
        base = float(np.median(times["ours, 4 bits"][state]))
        print(f"{state:<36}  median µs  least µs  against 4 bits")
        for name, found in times.items():
            median, least = float(np.median(found[state])), min(found[state])
            print(f"  {name:<34}  {median:9.0f}  {least:8.0f}  {median / base:14.2f}")


if __name__ == "__main__":
    main()

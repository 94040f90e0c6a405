"""The streaming network of an integer graph: stages, foldings, and their scheduled functions against the reference."""

from typing import Any

import numpy as np
import pytest
import tvm
from fpga_cases import CASES, Case, target_cycles
from numpy.typing import NDArray

from qcc.errors import TargetError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Stage as IrStage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.verify.interp import evaluate
from qcc_targets.fpga.dataflow import streaming
from qcc_targets.fpga.folding import Folding, frame_cycles, legal, units
from qcc_targets.fpga.nests import build_nest
from qcc_targets.fpga.stages import Concat, Contraction, Dataflow, Port

Array = NDArray[Any]


class Compiled:
    """The scheduled functions of a network, as one library for this processor."""

    def __init__(self, network: Dataflow, foldings: dict[str, Folding]) -> None:
        self.network = network
        self.nests = {s.name: build_nest(s, foldings[s.name]) for s in network.stages if not isinstance(s, Concat)}
        functions = {f"f{i}": n.func.with_attr("global_symbol", f"f{i}") for i, n in enumerate(self.nests.values())}
        self.library = tvm.tirx.build(tvm.IRModule(functions), target={"kind": "llvm"})

    def run(self, frame: dict[str, Array]) -> dict[str, Array]:
        flows = {p.stream.name: frame[p.stream.name].reshape(-1)[p.order] for p in self.network.inputs}
        for stage in self.network.stages:
            inputs = [flows[s.name] for s in stage.inputs]
            if isinstance(stage, Concat):
                parts = [x.reshape(stage.outer, run) for x, run in zip(inputs, stage.runs, strict=True)]
                flows[stage.name] = np.concatenate(parts, axis=1).reshape(-1)
                continue
            number, nest = list(self.nests).index(stage.name), self.nests[stage.name]
            arrays = [*inputs, *nest.constants.values(), np.zeros(stage.output.size)]
            shaped = [
                np.ascontiguousarray(a.astype(str(b.dtype)).reshape([int(d) for d in b.shape]))
                for a, b in zip(arrays, nest.func.params, strict=True)
            ]
            tensors = [tvm.runtime.tensor(a) for a in shaped]
            self.library[f"f{number}"](*tensors)
            flows[stage.name] = tensors[-1].numpy().reshape(-1)
        return {p.stream.name: unordered(p, flows[p.stream.name]) for p in self.network.outputs}


def unordered(port: Port, codes: Array) -> Array:
    out = np.empty_like(codes)
    out[port.order] = codes
    return out.reshape(port.shape)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_scheduled_functions_give_the_reference(case: Case) -> None:
    graph, inputs = case.build(2)
    expected = evaluate(graph, inputs)
    network = streaming(graph)
    slowest = {s.name: legal(s)[0] for s in network.stages}
    between = target_cycles(network, frame_cycles(network, slowest) // 4)
    for foldings in (between, {s.name: legal(s)[-1] for s in network.stages}):
        compiled = Compiled(network, foldings)
        for sample in range(2):
            got = compiled.run({k: a[sample] for k, a in inputs.items()})
            for v, p in zip(graph.outputs, network.outputs, strict=True):
                assert np.array_equal(got[p.stream.name], expected[v.name][sample].astype(got[p.stream.name].dtype))


def test_accumulators_are_as_wide_as_their_certificates() -> None:
    graph, _ = next(c for c in CASES if c.name == "depthwise").build(1)
    (stage,) = streaming(graph).stages
    assert isinstance(stage, Contraction)
    assert stage.channelwise and stage.accumulator.bits < 24


def test_foldings_must_divide() -> None:
    graph, _ = next(c for c in CASES if c.name == "conv").build(1)
    (stage,) = streaming(graph).stages
    with pytest.raises(TargetError, match=r"iconv2d %y: pe 5 does not divide 8; it may be \(1, 2, 4, 8\)"):
        build_nest(stage, Folding(pe=5))


def test_one_requantization_unit_serves_as_many_outputs_as_a_sum_takes_cycles() -> None:
    graph, _ = next(c for c in CASES if c.name == "conv").build(1)
    (stage,) = streaming(graph).stages
    assert units(stage, Folding(pe=8, simd=1)) == 1
    assert units(stage, Folding(pe=8, simd=6)) == 1
    assert units(stage, Folding(pe=4, simd=6)) == 1


def test_maxima_are_as_narrow_as_what_they_are_of() -> None:
    """A 4-bit grid in bytes: padding counts only where a window holds nothing else."""
    b = GraphBuilder("net", IrStage.INTEGER)
    grid = Quant(4, False, (Dyadic(1, 3),), 1)
    x = b.input("x", (BATCH, 2, 4, 4), "u8", Quant(8, False, (Dyadic(1, 3),)))
    c = b.constant(np.zeros(1, np.int64), "c")
    m = b.constant(np.full(1, 1 << 4, np.int32), "m")
    y = b.op("ilinear", (c, x, m), name="y", quant=grid, shift=8, qmin=0, qmax=15)
    attrs: dict[str, Any] = {"kernel": (2, 2), "strides": (2, 2), "dilations": (1, 1)}
    some = b.op("max_pool2d", (y,), name="some", quant=grid, pads=(1, 1, 1, 1), **attrs)
    none = b.op("max_pool2d", (y,), name="none", quant=grid, pads=(2, 2, 0, 0), **attrs)
    bits = {s.name: s.output.bits for s in streaming(b.graph([some, none])).stages}
    assert bits == {"y": 4, "some": 4, "none": 8}


def test_layers_that_cannot_stream_are_named() -> None:
    b = GraphBuilder("net", IrStage.INTEGER)
    x = b.input("x", (BATCH, 4, 6), "u8", Quant(8, False, (Dyadic(1, 3),), 3))
    t = b.op("transpose", (x,), name="t", quant=x.type.quant, perm=(0, 2, 1))
    table = b.constant(np.arange(256).astype(np.uint8), "table")
    one = b.op("ilookup", (x, table), name="one", quant=x.type.quant)
    two = b.op("ilookup", (t, table), name="two", quant=x.type.quant)
    with pytest.raises(TargetError, match="ilookup %one: %x does not arrive in rows of pixels"):
        streaming(b.graph([two, one]))
    b = GraphBuilder("net", IrStage.INTEGER)
    x = b.input("x", (BATCH, 8, 4, 4), "u8", Quant(8, False, (Dyadic(1, 3),), 3))
    y = b.op("argmax", (x,), name="y", axis=1, keepdims=False)
    with pytest.raises(TargetError, match="argmax %y: target 'fpga' has no hardware for this operation"):
        streaming(b.graph([y]))

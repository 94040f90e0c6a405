"""Blocks of output channels with bits of their own: the best splits, within budgets, and the same bits everywhere."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.artifact.sizes import layer_sizes
from qcc.errors import BudgetError, ConfigError
from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value, constants, producers
from qcc.ir.layout import Widths
from qcc.ir.packing import packed_size
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.target import NARROW_BITS, Capabilities
from qcc.trial import trial_session
from qcc.verify.interp import evaluate
from qcc.verify.ort import OrtModel
from qcc_passes.acceptance import Court
from qcc_passes.assignment import Assignment
from qcc_passes.calibrate import Calibrate
from qcc_passes.channel_errors import channel_errors
from qcc_passes.channel_splits import splits
from qcc_passes.costs import CostModel
from qcc_passes.dyadic import Dyadic
from qcc_passes.facts import BitPlan
from qcc_passes.group_candidates import Candidate, Drafter
from qcc_passes.head import head, softmax
from qcc_passes.pipelines import default
from qcc_passes.precision_groups import PrecisionGroups, PrecisionGroupsFound, foremost_unless_beaten
from qcc_passes.quantize import Quantize
from qcc_passes.round_weights import RoundWeights
from qcc_passes.scoring import Score, compiled_by
from qcc_passes.variants import round_layers
from qcc_targets.c.target import CTarget
from qcc_targets.cpu.target import CpuTarget

Array = NDArray[Any]


def network() -> Graph:
    """Three convolutions, one depthwise, and a dense layer; some output channels matter far more than others."""
    b, rng = GraphBuilder("net"), np.random.default_rng(3)
    x = b.input("x", (BATCH, 3, 6, 6))

    def conv(x: Value, outputs: int, groups: int, size: int) -> Value:
        inputs = x.type.shape[1] // groups
        w = rng.normal(size=(outputs, inputs, size, size)) * np.exp(rng.normal(size=(outputs, 1, 1, 1)))
        window: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1), "pads": (size // 2,) * 4}
        operands = [x, b.constant(w.astype(np.float32), "w"), b.constant(np.zeros(outputs, np.float32), "b")]
        return b.op("conv2d", operands, groups=groups, lo=0.0, **window)

    y = conv(conv(conv(conv(x, 16, 1, 3), 32, 1, 1), 32, 32, 3), 24, 1, 1)
    y = b.op("reduce_mean", [y], axes=(2, 3), keepdims=False)
    w = rng.normal(size=(10, 24)).astype(np.float32) / 20
    return b.graph([b.op("dense", [y, b.constant(w, "w"), b.constant(np.zeros(10, np.float32), "b")])])


def context(seed: int = 4) -> PassContext:
    ctx = PassContext(capabilities=Capabilities(weight_bits=NARROW_BITS, activation_bits=frozenset({8, 16})))
    rng = np.random.default_rng(seed)
    ctx.facts.put(CalibrationData({"x": rng.normal(size=(64, 3, 6, 6)).astype(np.float32)}))
    return ctx


@pytest.mark.parametrize("seed", range(4))
def test_splits_are_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths, align = (2, 4, 8), 3
    errors = np.sort(rng.uniform(size=(3, 10)), axis=0)[::-1]
    found = splits(errors, widths, align, most=1000)
    sizes = [3, 3, 3, 1]
    blocks = np.add.reduceat(errors, [0, 3, 6, 9], axis=1)
    least: dict[int, float] = {}
    for picks in itertools.product(range(3), repeat=4):
        total = sum(n * widths[p] for n, p in zip(sizes, picks, strict=True))
        error = sum(blocks[p, i] for i, p in enumerate(picks))
        least[total] = min(least.get(total, np.inf), error)
    front = {t: e for t, e in least.items() if all(e < other for t2, other in least.items() if t2 < t)}
    assert {s.total: pytest.approx(s.error) for s in found} == front
    for s in found:
        assert sum(s.bits) == s.total
        assert s.error == pytest.approx(sum(errors[widths.index(b), i] for i, b in enumerate(s.bits)))


def test_few_splits_keep_what_uniform_bits_cost() -> None:
    errors = np.outer([4.0, 1.0, 0.1], np.linspace(1, 9, 400))
    found = splits(errors, (2, 4, 8), 4, most=5)
    assert len(found) < 12
    assert {400 * b for b in (2, 4, 8)} <= {s.total for s in found}


def test_errors_of_channels_are_those_of_the_logits() -> None:
    """A dense layer alone: its rounding moves one logit, and the KL to second order is known."""
    b, rng = GraphBuilder("one"), np.random.default_rng(1)
    x = b.input("x", (BATCH, 8))
    w, bias = rng.normal(size=(5, 8)).astype(np.float32), np.zeros(5, np.float32)
    graph = b.graph([b.op("dense", [x, b.constant(w, "w"), b.constant(bias, "b")])])
    top, ctx = head(graph), PassContext()
    data = {"x": rng.normal(size=(96, 8)).astype(np.float32)}
    ctx.facts.put(CalibrationData(data))
    weights = round_layers(top, {top.layers[0].name: (2, 3)}, [data], ctx)
    found = channel_errors(top, weights, [data], {}, 2000, ctx)[top.layers[0].name]
    logits = data["x"].astype(np.float64) @ w.T
    wanted = np.zeros((2, 2, 5))
    for row, bits in enumerate((2, 3)):
        variant = weights[top.layers[0].name, bits]
        delta = data["x"] @ (variant.weights - w).T + variant.bias
        for number, temperature in enumerate((1, 4)):
            p = softmax(logits / temperature, -1)
            wanted[number, row] = (p * (1 - p) * delta**2 / 2).mean(axis=0)
    wanted[1] *= wanted[0].sum() / wanted[1].sum()
    assert np.allclose(found, wanted.mean(axis=0), rtol=0.15)


@pytest.mark.parametrize(("samples", "alike"), [(40, True), (120, False)])
def test_logits_of_classes_that_samples_hardly_show_count_alike(samples: int, alike: bool) -> None:
    """Twenty classes, ten of which no sample is near to: with few samples nothing says that none will be."""
    b, rng = GraphBuilder("classes"), np.random.default_rng(1)
    x = b.input("x", (BATCH, 8))
    w, bias = rng.normal(size=(20, 8)).astype(np.float32), np.repeat(np.array([0, -30], np.float32), 10)
    graph = b.graph([b.op("dense", [x, b.constant(w, "w"), b.constant(bias, "b")])])
    top, ctx = head(graph), PassContext()
    data = {"x": rng.normal(size=(samples, 8)).astype(np.float32)}
    ctx.facts.put(CalibrationData(data))
    weights = round_layers(top, {top.layers[0].name: (2, 3)}, [data], ctx)
    (found,) = channel_errors(top, weights, [data], {}, 200, ctx).values()
    likely, unlikely = found[:, :10].sum(axis=1), found[:, 10:].sum(axis=1)
    assert np.array_equal(unlikely > likely / 4, [alike, alike])


def test_all_executions_agree_on_mixed_channels() -> None:
    ctx, graph = context(), network()
    options: dict[str, Any] = {"budgets": {"bits": 4.5}, "align": 8, "scored_by": {}}
    passes = (Calibrate(), PrecisionGroups(**options), Quantize(end_bits=None), RoundWeights(), Dyadic())
    integer = Pipeline(passes).run(graph, ctx)
    found = ctx.facts.get(PrecisionGroupsFound)
    assert found.used["bits"] <= 4.5
    assert found.rearranged
    made_by = producers(integer)
    mixed = 0
    for layer in found.layers:
        weight = made_by[layer.layer].operands[1]
        assert weight.type.quant is not None
        array = constants(integer)[weight.name]
        bits = Widths(0, layer.runs).per_index()
        assert all(np.abs(w + 0.5).max() < 1 << (b - 1) for w, b in zip(array, bits.tolist(), strict=True))
        mixed += weight.type.quant.layout == Widths(0, layer.runs)
        assert (weight.type.quant.layout is None) == (len(layer.runs) == 1)
    assert mixed >= 2
    sizes = layer_sizes(integer)
    average = sum(s.bytes for s in sizes) * 8 / sum(int(np.prod(s.shape)) for s in sizes)
    assert abs(average - found.used["bits"]) < 0.1
    (x,) = integer.inputs
    assert x.type.quant is not None
    codes = {"x": x.type.quant.quantize(np.random.default_rng(5).normal(size=(7, 3, 6, 6)))}
    wanted = evaluate(integer, codes)
    (name,) = wanted
    assert np.array_equal(OrtModel(export_onnx(integer)).run(codes)[name], wanted[name])
    for target in (CpuTarget(), CTarget()):
        with trial_session(integer, target) as session:
            assert np.array_equal(session.run(codes, raw=True)[name], wanted[name])


def test_more_freedom_never_costs() -> None:
    def error(**options: Any) -> float:
        ctx = context()
        Pipeline((PrecisionGroups(budgets={"bits": 4}, scored_by={}, **options),)).run(network(), ctx)
        return ctx.facts.get(PrecisionGroupsFound).error

    by_layer, by_block, ordered = error(align=1000, rearrange=False), error(align=4, rearrange=False), error(align=4)
    assert ordered < by_block < by_layer


def test_bytes_of_layers_stay_what_was_chosen_for_them() -> None:
    ctx, graph = context(), network()
    parts = head(graph).layers
    bits = dict(zip([layer.name for layer in parts], (8, 4, 8, 5, 3), strict=True))
    ctx.facts.put(BitPlan(bits, {"y": 6}))
    Pipeline((PrecisionGroups(align=4, scored_by={}),)).run(graph, ctx)
    found = ctx.facts.get(PrecisionGroupsFound)
    assert found.used["size"] <= sum(packed_size(layer.parameters, bits[layer.name]) for layer in parts)
    assert any(len(each.runs) > 1 for each in found.layers)
    assert ctx.facts.get(BitPlan).activation_bits == {"y": 6}
    ctx.facts.put(BitPlan({parts[1].name: 4}, {}))
    Pipeline((PrecisionGroups(align=4, scored_by={}),)).run(graph, ctx)
    assert set(ctx.facts.get(BitPlan).weight_bits) == {parts[1].name}  # the others are left to quantize


def test_layers_keep_one_width_where_the_compiled_network_loses_by_more() -> None:
    kept = []
    for seed in range(4):
        ctx, graph = context(seed), network()
        plain = BitPlan({layer.name: 4 for layer in head(graph).layers}, {})
        ctx.facts.put(plain)
        calibrated = Pipeline((Calibrate(),)).run(graph, ctx)
        court = Court.of(calibrated, ctx, compiled_by(), 0.4)
        chosen = PrecisionGroups(align=4).run(calibrated, ctx)
        found, by_layer = (court.score(g, p) for g, p in ((chosen, ctx.facts.get(BitPlan)), (calibrated, plain)))
        kept.append(ctx.facts.get(BitPlan).weight_bits == plain.weight_bits)
        assert found.soft <= by_layer.soft
        told = {t.name: (t.kl, t.soft) for t in ctx.facts.get(PrecisionGroupsFound).tried}
        assert told["by layer"] == (by_layer.kl, by_layer.soft)
        assert len(told) >= 3
    assert not all(kept)


def test_within_a_budget_the_prediction_decides_unless_it_surely_errs() -> None:
    graph = network()

    def candidate(name: str, predicted: float) -> Candidate:
        return Candidate(name, graph, False, (), Assignment((), predicted, predicted, {}))

    def choice(*shifts: float) -> str:
        """What is taken where the candidates' softened KL differs by ``shifts`` from 1, with a noise of 0.1."""
        noise = np.random.default_rng(0).normal(size=(len(shifts), 64)) / 10
        drafts = [candidate(str(n), n) for n in range(len(shifts))]
        found = {c.name: Score(0.0, 0.0, None, 1 + s + e) for c, s, e in zip(drafts, shifts, noise, strict=True)}
        return foremost_unless_beaten(drafts, lambda c: found[c.name]).name

    assert choice(0, -0.01, 0.02) == "0"
    assert choice(0, -0.2, 0.1) == "1"
    assert choice(0, -0.2, -0.3) == "2"


def test_blocks_grow_with_layers() -> None:
    rng = np.random.default_rng(0)
    for channels, block in ((16, 4), (64, 4), (128, 8), (200, 8), (256, 16), (2048, 16)):
        table = np.array([[4.0], [1.0]]) * rng.uniform(size=channels)
        top = head(dense(channels))
        (layer,) = top.layers
        drafts = Drafter(CostModel.of(top.graph, top.layers, (), None), (2, 4), None).below(
            network(), {layer.name: table}, {"bits": 3}, {}, rearranged=True
        )
        ends = np.cumsum([n for n, _ in next(iter(drafts)).layers[0].runs])[:-1]
        assert len(ends)
        assert not (ends % block).any()
        assert (ends % (2 * block)).any()


def dense(outputs: int) -> Graph:
    b = GraphBuilder("dense")
    w, bias = np.ones((outputs, 3), np.float32), np.zeros(outputs, np.float32)
    return b.graph([b.op("dense", [b.input("x", (BATCH, 3)), b.constant(w, "w"), b.constant(bias, "b")])])


def test_what_cannot_be() -> None:
    def run(**options: Any) -> None:
        Pipeline((PrecisionGroups(**options),)).run(network(), context())

    with pytest.raises(ConfigError, match="no metric 'latency'"):
        run(budgets={"latency": 1.0})
    with pytest.raises(ConfigError, match="none of which"):
        run(budgets={"bits": 4}, weight_bits=(9,))
    with pytest.raises(BudgetError):
        run(budgets={"bits": 1.5})
    with pytest.raises(ConfigError, match="give budgets, or run a pass"):
        run()
    with pytest.raises(ConfigError, match="run calibrate before"):
        run(budgets={"bits": 4})


def test_the_default_pipeline_takes_it() -> None:
    names = [p.name for p in default({"precision-groups": {"budgets": {"bits": 4.5}}})]
    assert names.index("calibrate") < names.index("precision-groups") < names.index("quantize")
    assert "sensitivity-perturbation" not in names
    both = default({"precision-groups": {}, "mixed-precision": {"budgets": {"bits": 4.5}}})
    assert [p.name for p in both].index("precision-groups") == [p.name for p in both].index("mixed-precision") + 1
    with pytest.raises(ConfigError, match="no budgets beside it"):
        default({"precision-groups": {"budgets": {"bits": 4}}, "assign-bits": {"bits": {}}})

"""The mixed-precision pass: within its budgets, better than uniform, and clear about what cannot be."""

from typing import Any

import numpy as np
import pytest

from qcc.errors import ConfigError, PassError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph
from qcc.ir.types import BATCH
from qcc.passmgr.candidates import Candidates
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.target import Capabilities
from qcc_passes.facts import BitPlan
from qcc_passes.head import head
from qcc_passes.mixed_precision import MixedPrecision
from qcc_passes.perturbation import MeasurePerturbations
from qcc_passes.scoring import Score
from qcc_passes.sensitivity import GaussNewtonTrace

LAYERS = (("one", (24, 8), 1.0), ("two", (24, 24), 0.1), ("three", (24, 24), 1.0), ("four", (24, 24), 3.0))


@pytest.fixture
def network() -> Graph:
    """A chain of residual dense layers whose weights matter more or less."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("chain")
    x = b.input("x", (BATCH, 8))
    for name, shape, gain in LAYERS:
        w = b.constant((gain * rng.normal(size=shape) / shape[1]).astype(np.float32), f"w_{name}")
        zero = b.constant(np.zeros(shape[0], np.float32), f"b_{name}")
        residual = [x] if shape[0] == shape[1] else []
        x = b.op("dense", [x, w, zero, *residual], name=name, lo=0.0)
    w = b.constant(rng.normal(size=(6, 24)).astype(np.float32), "w_last")
    return b.graph([b.op("dense", [x, w, b.constant(np.zeros(6, np.float32), "b_last")], name="last")])


def measured(network: Graph) -> PassContext:
    ctx = PassContext(capabilities=Capabilities(weight_bits=frozenset({2, 3, 4, 6, 8})))
    ctx.facts.put(CalibrationData({"x": np.random.default_rng(1).normal(size=(192, 8)).astype(np.float32)}))
    MeasurePerturbations(samples=128, held_out=0.3).run(network, ctx)
    GaussNewtonTrace(samples=128, held_out=0.3).run(network, ctx)
    return ctx


def test_plan_meets_every_budget_and_beats_uniform(network: Graph) -> None:
    ctx = measured(network)
    weights = sum(layer.parameters for layer in head(network).layers)
    budgets = {"bits": 4.0, "size": 0.5 * weights}
    MixedPrecision(budgets=budgets, ends=None).run(network, ctx)
    best, *others = ctx.facts.get(Candidates).tried
    named = {c.objective for c in (best, *others)}
    assert {"pairwise", "sensitivity-gauss-newton", "uniform"} <= named
    assert all(best.softened <= c.softened for c in others)
    assert all(best.costs[m] <= limit * (1 + 1e-9) for m, limit in budgets.items())
    assert all(c.gap < 1e-6 for c in (best, *others) if c.objective != "refined")
    assert ctx.facts.get(BitPlan).weight_bits == best.weight_bits
    (uniform,) = (c for c in others if c.objective == "uniform")
    assert set(uniform.weight_bits.values()) == {4}
    assert best.softened < uniform.softened


def test_candidates_scored_by_rounding_alone_are_scored(network: Graph) -> None:
    ctx = measured(network)
    MixedPrecision(budgets={"bits": 4.0}, scored_by={}).run(network, ctx)
    assert all(c.kl > 0 for c in ctx.facts.get(Candidates).tried)


def test_fewer_bits_everywhere_are_not_tried(network: Graph) -> None:
    """Within 4.7 bits on average all layers can have 4, and the first and last then 8."""
    ctx = measured(network)
    MixedPrecision(budgets={"bits": 4.7}, tries=0).run(network, ctx)
    tried = {c.objective: list(c.weight_bits.values()) for c in ctx.facts.get(Candidates).tried}
    assert tried["uniform, wide ends"] == [8, 4, 4, 4, 8]
    assert "uniform" not in tried
    MixedPrecision(budgets={"bits": 4.7}, tries=0, minimize="bits").run(network, ctx)
    assert "uniform" in {c.objective for c in ctx.facts.get(Candidates).tried}


def test_kept_layers_and_ends_are_respected(network: Graph) -> None:
    ctx = measured(network)
    MixedPrecision(budgets={"bits": 5.0}, keep={"two": 6}, ends=8).run(network, ctx)
    plan = ctx.facts.get(BitPlan).weight_bits
    assert (plan["one"], plan["last"], plan["two"]) == (8, 8, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": {"energy": 1.0}}, "unknown budget metric 'energy'"),
        ({"budgets": {"bits": 1.0}}, "the tightest reachable"),
        ({"budgets": {"bits": 4.0}, "keep": {"nine": 4}}, "no layer 'nine' to keep; layers: one"),
        ({"budgets": {"bits": 4.0}, "weight_bits": (5, 7)}, "the target has weights of 2, 3, 4, 6, 8 bits"),
    ],
)
def test_what_cannot_be_is_said(network: Graph, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixedPrecision(**options).run(network, measured(network))


def test_sensitivities_must_have_been_measured(network: Graph) -> None:
    ctx = PassContext()
    ctx.facts.put(CalibrationData({"x": np.zeros((4, 8), np.float32)}))
    with pytest.raises(PassError, match="run sensitivity-gauss-newton or -perturbation before it"):
        MixedPrecision(budgets={"bits": 8.0}).run(network, ctx)


def test_surely_below_needs_more_than_noise() -> None:
    """Two standard errors of the difference on the same samples."""
    rng = np.random.default_rng(0)
    plain = rng.uniform(1, 2, size=40)
    scores = [Score(1.0, 0.0, None, blends) for blends in (plain, plain * 0.6, plain + rng.normal(0, 1, size=40))]
    assert not scores[2].surely_below(scores[0])
    assert scores[1].surely_below(scores[0])
    assert not scores[0].surely_below(scores[1])
    assert not scores[0].surely_below(scores[0])

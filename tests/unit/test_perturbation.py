"""Perturbations: the Gram matrix predicts the KL of joint rounding, and is positive semidefinite."""

from typing import Any

import numpy as np
import pytest

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.curvature import run
from qcc_passes.head import head, softmax
from qcc_passes.perturbation import MeasurePerturbations, Perturbations
from qcc_passes.variants import with_variants


@pytest.fixture
def network() -> Graph:
    rng = np.random.default_rng(0)
    b = GraphBuilder("chain")
    x = b.input("x", (BATCH, 8))
    for name, shape in (("one", (16, 8)), ("two", (16, 16)), ("three", (5, 16))):
        w = b.constant((rng.normal(size=shape) / 4).astype(np.float32), f"w_{name}")
        bias = b.constant(rng.normal(size=shape[0]).astype(np.float32) / 4, f"b_{name}")
        clamp: dict[str, Any] = {} if name == "three" else {"lo": 0.0}
        x = b.op("dense", [x, w, bias], name=name, **clamp)
    return b.graph([x])


def measure(network: Graph, bits: tuple[int, ...], **options: Any) -> tuple[Perturbations, CalibrationData]:
    ctx = PassContext()
    data = CalibrationData({"x": np.random.default_rng(1).normal(size=(100, 8)).astype(np.float32)})
    ctx.facts.put(data)
    MeasurePerturbations(weight_bits=bits, batch=32, held_out=0, **options).run(network, ctx)
    return ctx.facts.get(Perturbations), data


def test_gram_is_positive_semidefinite_and_falls_with_bits(network: Graph) -> None:
    found, _ = measure(network, (3, 8))
    assert found.options == tuple(("weight", n, b) for n in ("one", "two", "three") for b in (3, 8))
    assert np.linalg.eigvalsh(found.gram).min() > -1e-12
    own = np.diag(found.gram)
    assert (own[0::2] > 50 * own[1::2]).all()


def test_gram_predicts_the_kl_of_joint_rounding(network: Graph) -> None:
    found, data = measure(network, (6,))
    top = head(network)
    assert found.weights is not None
    rounded = with_variants(top.graph, {n: found.weights[n, 6] for n in ("one", "two", "three")})
    p, q = (softmax(run(g, data.arrays)["three"].astype(np.float64), -1) for g in (top.graph, rounded))
    true = float((p * np.log(p / q)).sum(axis=-1).mean())
    # Half the quadratic form; the diagonal alone would miss the inter-layer terms.
    assert found.gram.sum() / 2 == pytest.approx(true, rel=0.05)


def test_unknown_options_count_as_exact(network: Graph) -> None:
    found, _ = measure(network, (4,))
    gram = found.of([("weight", "one", 4), ("weight", "one", 16)])
    assert gram[0, 0] == found.gram[0, 0]
    assert (gram[1] == 0).all()

"""The theory behind sensitivity, on a network small enough to have its exact Hessian."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import ConfigError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, constants
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.backward import Backward
from qcc_passes.curvature import (
    Network,
    cross_entropy_gradient,
    gauss_newton_cotangents,
    hessian_vector,
    kl_gradient,
    probe_gauss_newton,
    run,
)
from qcc_passes.head import head, softmax
from qcc_passes.sensitivity import (
    GaussNewtonTrace,
    HutchinsonTrace,
    Sensitivities,
    Sensitivity,
    TopEigenvalue,
    label_batches,
)

Array = NDArray[Any]
SAMPLES = 5


@pytest.fixture
def network() -> Graph:
    """Conv - tanh - dense on [N, 2, 4, 4]: smooth, so that its Hessian exists everywhere."""
    rng = np.random.default_rng(3)
    b = GraphBuilder("small")
    x = b.input("x", (BATCH, 2, 4, 4))
    w = b.constant(rng.normal(size=(3, 2, 3, 3)).astype(np.float32) / 3, "w")
    zero = b.constant(np.zeros(3, np.float32), "zero")
    y = b.op("conv2d", [x, w, zero], name="conv", strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1)
    y = b.op("map", [y], fn="tanh(x)")
    y = b.op("reshape", [y], shape=(BATCH, 12))
    v = b.constant(rng.normal(size=(4, 12)).astype(np.float32), "v")
    bias = b.constant(rng.normal(size=4).astype(np.float32), "bias")
    return b.graph([b.op("dense", [y, v, bias], name="logits")])


@pytest.fixture
def data() -> dict[str, Array]:
    return {"x": np.random.default_rng(4).normal(size=(SAMPLES, 2, 4, 4))}


def exact_gauss_newton(graph: Graph, inputs: Mapping[str, Array]) -> Array:
    """Mean over samples of J^T S J over all weights, by one backward pass per sample and logit."""
    top = head(graph)
    weights = [layer.weight for layer in top.layers]
    backward = Backward(top.graph, threads=1)
    total: Array = np.zeros(())
    for n in range(SAMPLES):
        values = run(top.graph, {k: a[n : n + 1] for k, a in inputs.items()})
        logits = values[top.classifier]
        rows = []
        for k in range(logits.shape[1]):
            grads = backward.weight_gradients(values, {top.classifier: np.eye(logits.shape[1])[k : k + 1]}, weights)
            rows.append(np.concatenate([grads[w].ravel() for w in weights]))
        jacobian, p = np.array(rows), softmax(logits, -1)[0]
        total = total + jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian / SAMPLES
    return total


def exact_hessian(graph: Graph, inputs: Mapping[str, Array], labels: Array | None) -> Array:
    """Columns H e_i of the mean KL (no labels) or cross-entropy, by differences of exact gradients."""
    top = head(graph)
    logits = run(top.graph, inputs)[top.classifier]
    name = top.classifier
    loss = kl_gradient(name, logits) if labels is None else cross_entropy_gradient(name, labels)
    arrays = {k: a for k, a in constants(top.graph).items() if k in ("w", "v")}
    columns = []
    for name in ("w", "v"):
        for i in range(arrays[name].size):
            direction = {k: np.zeros(a.shape) for k, a in arrays.items()}
            direction[name].flat[i] = 1.0
            product = hessian_vector(top, inputs, loss, direction, 1e-4)
            columns.append(np.concatenate([product[k].ravel() for k in ("w", "v")]))
    return np.array(columns).T


def block_traces(matrix: Array) -> dict[str, float]:
    diagonal = np.diag(matrix)
    return {"conv": float(diagonal[:54].sum()), "logits": float(diagonal[54:].sum())}


def test_kl_hessian_is_the_gauss_newton_matrix(network: Graph, data: dict[str, Array]) -> None:
    exact = exact_gauss_newton(network, data)
    hessian = exact_hessian(network, data, None)
    assert np.abs(hessian - exact).max() / np.abs(exact).max() < 1e-6


def test_cotangent_has_the_covariance_of_the_softmax(network: Graph) -> None:
    logits = np.array([[0.5, -1.0, 2.0, 0.0]])
    rng = np.random.default_rng(0)
    top = head(network)
    seeds = (gauss_newton_cotangents(top, {"logits": logits}, {}, rng) for _ in range(40_000))
    draws = np.array([seed["logits"][0] for seed in seeds])
    p = softmax(logits, -1)[0]
    assert np.abs(draws.T @ draws / len(draws) - (np.diag(p) - np.outer(p, p))).max() < 5e-3


def test_gauss_newton_probes_are_unbiased(network: Graph, data: dict[str, Array]) -> None:
    exact = block_traces(exact_gauss_newton(network, data))
    inputs = {k: a.astype(np.float32) for k, a in data.items()}
    found = probe_gauss_newton(Network(head(network), 1), inputs, {}, 1500, np.random.default_rng(1))
    for name, rows in found.items():
        estimate = rows / SAMPLES
        assert abs(estimate.mean() - exact[name]) < 4 * estimate.std() / len(rows) ** 0.5
        assert estimate.std() / estimate.mean() < 1.0


def test_hutchinson_probes_are_unbiased(network: Graph, data: dict[str, Array]) -> None:
    labels = np.array([0, 3, 1, 2, 2])
    exact = block_traces(exact_hessian(network, data, labels))
    top, rng = head(network), np.random.default_rng(1)
    rows: dict[str, list[float]] = {"conv": [], "logits": []}
    for _ in range(400):
        v = {"w": rng.choice([-1.0, 1.0], (3, 2, 3, 3)), "v": rng.choice([-1.0, 1.0], (4, 12))}
        product = hessian_vector(top, data, cross_entropy_gradient("logits", labels), v, 1e-4)
        rows["conv"].append(float((product["w"] * v["w"]).sum()))
        rows["logits"].append(float((product["v"] * v["v"]).sum()))
    for name, row in rows.items():
        assert abs(np.mean(row) - exact[name]) < 4 * np.std(row) / len(row) ** 0.5


def context(data: dict[str, Array], labels: Array | None = None) -> PassContext:
    ctx = PassContext()
    ctx.facts.put(CalibrationData({k: a.astype(np.float32) for k, a in data.items()}, labels))
    return ctx


def test_passes_agree_with_the_exact_matrices(network: Graph, data: dict[str, Array]) -> None:
    exact = block_traces(exact_gauss_newton(network, data))
    labels = np.array([0, 3, 1, 2, 2])
    hessian = exact_hessian(network, data, labels)
    ctx = context(data, labels)

    def found() -> Mapping[str, Sensitivity]:
        return ctx.facts.get(Sensitivities).by_method

    GaussNewtonTrace(probes=500, batch=2, held_out=0, samples=5).run(network, ctx)
    trace = found()["sensitivity-gauss-newton"]
    assert trace.curvature["conv"] * 54 == pytest.approx(exact["conv"], rel=0.1)
    assert trace.curvature["logits"] * 48 == pytest.approx(exact["logits"], rel=0.1)
    HutchinsonTrace(probes=100, batch=5, held_out=0, samples=5).run(network, ctx)
    trace = found()["sensitivity-hutchinson"]
    assert abs(trace.curvature["conv"] * 54 - block_traces(hessian)["conv"]) < 5 * trace.error["conv"] * 54
    TopEigenvalue(iterations=40, tolerance=1e-4, batch=2, held_out=0, samples=5).run(network, ctx)
    top = found()["sensitivity-eigenvalue"].curvature
    assert top["conv"] == pytest.approx(np.abs(np.linalg.eigvalsh(hessian[:54, :54])).max(), rel=0.02)


def test_labels_that_do_not_fit_are_refused(network: Graph, data: dict[str, Array]) -> None:
    with pytest.raises(ConfigError, match="3 labels do not fit 5 samples"):
        CalibrationData(data, np.zeros(3, int)).check(network)
    with pytest.raises(ConfigError, match=r"labels must lie in 0..3, got 0..9"):
        label_batches(head(network), [data], CalibrationData(data, np.array([0, 9, 0, 0, 0])))

"""What candidates are ranked by: softened outputs on blends of samples."""

import numpy as np
import pytest

from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph
from qcc.ir.types import BATCH
from qcc.passmgr.facts import CalibrationData
from qcc.verify.ort import OrtModel
from qcc_passes.head import head
from qcc_passes.scoring import Scorer


def network(scale: float, error: float = 0.0) -> Graph:
    """Five logits [N, 5] of a layer, ``error`` off in each weight."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("net")
    weights = rng.normal(size=(5, 6)) + error * rng.normal(size=(5, 6))
    operands = [b.input("x", (BATCH, 6)), b.constant((scale * weights).astype(np.float32))]
    return b.graph([b.op("dense", [*operands, b.constant(np.zeros(5, np.float32))], name="logits")])


def scorer(graph: Graph, samples: int = 30) -> Scorer:
    data = np.random.default_rng(1).normal(size=(samples, 6)).astype(np.float32)
    return Scorer.of(head(graph), CalibrationData({"x": data}), 1)


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_softened_outputs_do_not_depend_on_the_scale_of_logits(scale: float) -> None:
    found = scorer(network(scale)).judge(OrtModel(export_onnx(network(scale, 0.1))))
    plain = scorer(network(1.0)).judge(OrtModel(export_onnx(network(1.0, 0.1))))
    assert found.soft == pytest.approx(plain.soft, rel=1e-3)
    assert found.soft > 0


def test_samples_are_blended_with_others() -> None:
    given = scorer(network(1.0))
    own, blends = (np.concatenate([each["x"] for each in some]) for some in (given.batches, given.blends))
    assert own.shape == blends.shape
    assert np.allclose(blends, (own + np.roll(own, 10, axis=0)) / 2)
    assert not np.isclose(blends[:, None], own[None]).all(axis=-1).any()


def test_one_sample_alone_is_its_own_blend() -> None:
    given = scorer(network(1.0), samples=1)
    assert np.array_equal(given.blends[0]["x"], given.batches[0]["x"])

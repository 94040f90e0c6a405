"""Weight grids."""

import numpy as np
import pytest

from qcc_passes.quantize_weights import weight_quant


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("search", ["max", "mse"])
def test_weights_of_zeros_have_a_grid(granularity: str, search: str) -> None:
    quant = weight_quant(np.zeros((3, 2, 1, 1), np.float32), 8, granularity, search)  # type: ignore[arg-type]
    assert {float(scale) for scale in quant.scale} == {1.0}


def test_a_channel_of_zeros_takes_its_step_from_the_others() -> None:
    weights = np.array([[0.0, 0.0], [1.0, 0.3], [2.0, -0.7]], np.float32)
    steps = [float(scale) for scale in weight_quant(weights, 8, "channel", "max").scale]
    assert min(steps[1:]) <= steps[0] <= max(steps[1:])

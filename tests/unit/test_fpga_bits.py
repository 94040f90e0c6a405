"""What layers of a FLOAT graph will take of an FPGA at some widths, and bits chosen by it."""

from typing import Any

import numpy as np
import pytest

from qcc.errors import BudgetError, TargetError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Op
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData, DeviceCosts
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass
from qcc.passmgr.target import NARROW_BITS, Capabilities
from qcc_passes.facts import BitPlan
from qcc_passes.layers import layers
from qcc_targets.fpga.bits import drafted
from qcc_targets.fpga.device import load_device
from qcc_targets.fpga.folding import Folding, cycles
from qcc_targets.fpga.rtl.products import Ports, multipliers
from qcc_targets.fpga.target import FpgaTarget

CYCLES = 1000


def network() -> Graph:
    rng = np.random.default_rng(0)
    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 16, 8, 8))
    window: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "lo": 0.0}
    for i, groups in enumerate((1, 16, 1)):
        w = rng.normal(size=(16, 16 // groups, 3, 3)).astype(np.float32) / 8
        operands = [x, b.constant(w, f"w{i}"), b.constant(np.zeros(16, np.float32), f"b{i}")]
        x = b.op("conv2d", operands, name=f"conv{i}", groups=groups, **window)
    x = b.op("reduce_mean", [x], axes=(2, 3), keepdims=False)
    w = rng.normal(size=(10, 16)).astype(np.float32)
    return b.graph([b.op("dense", [x, b.constant(w, "w"), b.constant(np.zeros(10, np.float32), "b")], name="logits")])


def layer(name: str) -> Op:
    return next(o for o in network().ops if o.result.name == name)


@pytest.mark.parametrize(
    ("name", "bits", "products"), [("conv0", 8, 2), ("conv0", 4, 3), ("conv1", 8, 1), ("logits", 8, 2)]
)
def test_drafts_share_multipliers_as_stages_do(name: str, bits: int, products: int) -> None:
    stage = drafted(layer(name), bits, 8)
    folding = Folding(1 if stage.channelwise else 10 if name == "logits" else 16, 1)
    assert stage.weight_bits == bits
    assert multipliers(stage, folding, Ports(27, 18)) == -(-folding.pe // products)


def test_layers_are_folded_to_be_as_fast_as_wanted() -> None:
    stage = drafted(layer("conv0"), 8, 8)
    assert cycles(stage, Folding(16, 16)) == 8 * 8 * 9
    found = FpgaTarget(cycles=CYCLES).layer_costs(layer("conv0"), 8, 8)
    # 16 x 16 products a cycle, two to a slice, and requantization.
    assert 128 < found["dsps"] < 150
    fewer = FpgaTarget(cycles=CYCLES).layer_costs(layer("conv0"), 4, 8)
    assert all(fewer[name] <= found[name] for name in found if name != "luts")
    assert fewer["dsps"] < found["dsps"] - 25
    assert FpgaTarget().layer_costs(layer("conv0"), 8, 8) == {}
    rate = FpgaTarget(fps=load_device("xczu3eg").clock_mhz * 1e6 / CYCLES)
    assert rate.layer_costs(layer("conv0"), 8, 8) == found
    with pytest.raises(TargetError, match="%conv0: a frame takes 576 cycles of it at least, not 100"):
        FpgaTarget(cycles=100).layer_costs(layer("conv0"), 8, 8)


def test_bits_are_chosen_within_slices() -> None:
    graph, target = network(), FpgaTarget(cycles=CYCLES)

    def chosen(budget: float) -> dict[str, int]:
        ctx = PassContext(capabilities=Capabilities(weight_bits=NARROW_BITS, activation_bits=NARROW_BITS))
        ctx.facts.put(CalibrationData({"x": np.random.default_rng(1).normal(size=(80, 16, 8, 8)).astype(np.float32)}))
        ctx.facts.put(DeviceCosts(target.layer_costs))
        mixed = make_pass("mixed-precision", {"budgets": {"dsps": budget}, "scored_by": {}, "tries": 0})
        Pipeline((make_pass("sensitivity-perturbation"), mixed)).run(graph, ctx)
        return dict(ctx.facts.get(BitPlan).weight_bits)

    def taken(bits: dict[str, int]) -> float:
        return sum(target.layer_costs(layer(x.name), bits[x.name], 8)["dsps"] for x in layers(graph))

    wide = taken(dict.fromkeys(("conv0", "conv1", "conv2", "logits"), 8))
    bits = chosen(wide - 30)
    assert min(bits.values()) < 8 and taken(bits) <= wide - 30
    assert chosen(wide) == dict.fromkeys(bits, 8)
    with pytest.raises(BudgetError, match="no assignment has dsps <= 1"):
        chosen(1)

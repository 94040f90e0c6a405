"""What rounding each output channel of each layer alone does to the model's outputs, at every width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Op, constants, producers
from qcc.passmgr.context import PassContext
from qcc.verify.ort import OrtModel
from qcc_passes.channel_rules import channel_axis
from qcc_passes.checkpoint import Checkpoint
from qcc_passes.curvature import Network, gauss_newton_cotangents
from qcc_passes.head import Head
from qcc_passes.perturbed import by_choice, changes
from qcc_passes.samples import samples_in
from qcc_passes.variants import Variants

Array = NDArray[Any]
Batch = Mapping[str, Array]
ChannelErrors = Mapping[str, Array]
"""By layer the second-order KL, nats per sample, of each width and output channel: [widths, O]."""


def channel_errors(
    top: Head, weights: Variants, batches: Sequence[Batch], spread: Batch, probes: int, ctx: PassContext
) -> ChannelErrors:
    """The errors of ``weights``, whose widths are the same for all layers, on ``batches``.

    To first order a channel's rounding changes the outputs by J e, e being the change of its map. For random
    cotangents c, E[c c^T] = S, the KL is the mean of (c^T J e)^2 / 2: the sum over the map of e times the
    cotangent there, so that one backward pass serves all channels and widths. ``spread`` is that of outputs that
    are no logits.
    """
    network = Network(top, ctx.threads)
    made_by, arrays = producers(top.graph), constants(top.graph)
    widths: dict[str, list[int]] = {}
    for name, bits in weights:
        widths.setdefault(name, []).append(bits)
    models = {
        name: changes(made_by[name], [weights[name, b] for b in some], arrays, ctx.threads)
        for name, some in widths.items()
    }
    total = sum(map(samples_in, batches))
    kept = Checkpoint.of("channel-errors", top.graph, ctx, widths, probes, list(map(samples_in, batches)))

    def step(index: int, inputs: Batch) -> dict[str, Array]:
        values = network.values(inputs)
        rng = np.random.default_rng([ctx.seed, index])
        seeds = [gauss_newton_cotangents(top, values, spread, rng) for _ in range(probes)]
        found = {}
        for steps in zip(*(network.walk(values, seed) for seed in seeds), strict=True):
            o = steps[0][0]
            if (model := models.get(o.result.name)) is not None:
                x, grads = values[o.operands[0].name], [inner for _, _, inner in steps]
                count = len(widths[o.result.name])
                found[o.result.name] = _squares(model, o, x, grads, count) / (2 * probes * total)
        return found

    return kept.accumulate("channel-errors", batches, step)


def _squares(model: OrtModel, o: Op, x: Array, grads: Sequence[Array], count: int) -> Array:
    """Summed over samples and probes, the squares of what each choice changes through each channel, [choices, O]."""
    axis = channel_axis(o)
    found = np.zeros((count, o.result.type.shape[axis]))
    for sample in range(len(x)):
        (change,) = model.run({"x": np.ascontiguousarray(x[sample : sample + 1])}).values()
        flat = by_choice(o, change, count).reshape(count, *o.result.type.shape[1:])
        rest = tuple(a for a in range(1, flat.ndim) if a != axis)
        for grad in grads:
            found += np.square((flat * grad[sample]).sum(axis=rest, dtype=np.float64))
    return found

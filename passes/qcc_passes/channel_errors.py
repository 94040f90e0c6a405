"""What rounding each output channel of each layer alone does to the model's outputs, at every width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Op, constants, producers
from qcc.passmgr.context import PassContext
from qcc.verify.ort import OrtModel
from qcc_passes.channel_groups import channel_groups
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

_TEMPERATURES: Final = (1.0, 4.0)
"""Samples that the network is sure of hardly count in KL, which a few others then decide; softened, all count."""

_PER_CLASS: Final = 4
"""The fewest samples per class that tell what the errors of single logits do."""


def channel_errors(
    top: Head, weights: Variants, batches: Sequence[Batch], spread: Batch, probes: int, ctx: PassContext
) -> ChannelErrors:
    """The errors of ``weights``, whose widths are the same for all layers, on ``batches``.

    To first order a channel's rounding changes the outputs by J e, e being the change of its map. For random
    cotangents c, E[c c^T] = S, the KL is the mean of (c^T J e)^2 / 2: the sum over the map of e times the
    cotangent there, so that one backward pass serves all channels and widths. ``spread`` is that of outputs that
    are no logits. What is given is the mean of KL and of softened KL, the latter scaled to the same sum.

    Errors of logits count only where their class is likely. Samples that are fewer than a few per class do not show
    most classes at all, so a layer that makes logits has its sum spread over them by their squared changes.
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
    counts = list(map(samples_in, batches))
    kept = Checkpoint.of("channel-errors", top.graph, ctx, widths, probes, _TEMPERATURES, counts)

    def step(index: int, inputs: Batch) -> dict[str, Array]:
        values = network.values(inputs)
        rng = np.random.default_rng([ctx.seed, index])
        seeds = [gauss_newton_cotangents(top, values, spread, rng, t) for _ in range(probes) for t in _TEMPERATURES]
        found = {}
        for steps in zip(*(network.walk(values, seed) for seed in seeds), strict=True):
            o = steps[0][0]
            if (model := models.get(o.result.name)) is not None:
                x, grads = values[o.operands[0].name], [inner for _, _, inner in steps]
                count = len(widths[o.result.name])
                found[o.result.name] = _squares(model, o, x, grads, count) / (2 * probes * total)
        return found

    tables = kept.accumulate("channel-errors", batches, step)
    sums = np.sum([table[:-1].sum(axis=(1, 2)) for table in tables.values()], axis=0)
    scale = sums[0] / np.where(sums > 0, sums, 1) / len(sums)
    rare = _rare_logits(top, total)
    found: dict[str, Array] = {}
    for name, (*errors, changed) in tables.items():
        mean = np.tensordot(scale, np.stack(errors), axes=1)
        found[name] = changed * (mean.sum() / (changed.sum() or 1.0)) if name in rare else mean
    return found


def _rare_logits(top: Head, samples: int) -> set[str]:
    """Layers whose channels are logits of more classes than ``samples`` can show."""
    labels = channel_groups(top.graph).labels
    classes = [labels[n].channels for n, axis in top.axes.items() if axis is not None and n in labels]
    many = [np.unique(channels) for channels in classes if samples < _PER_CLASS * channels.size]
    made = {layer.name: np.unique(labels[layer.name].channels) for layer in top.layers if layer.name in labels}
    return {name for name, channels in made.items() if any(np.array_equal(channels, some) for some in many)}


def _squares(model: OrtModel, o: Op, x: Array, grads: Sequence[Array], count: int) -> Array:
    """Summed over samples, of each choice and channel [temperatures + 1, choices, O].

    First the squares of what it changes in the outputs, over probes, for each temperature; then of its own change.
    """
    axis, softer = channel_axis(o), len(_TEMPERATURES)
    found = np.zeros((softer + 1, count, o.result.type.shape[axis]))
    for sample in range(len(x)):
        (change,) = model.run({"x": np.ascontiguousarray(x[sample : sample + 1])}).values()
        flat = by_choice(o, change, count).reshape(count, *o.result.type.shape[1:])
        rest = tuple(a for a in range(1, flat.ndim) if a != axis)
        for number, grad in enumerate(grads):
            found[number % softer] += np.square((flat * grad[sample]).sum(axis=rest, dtype=np.float64))
        found[-1] += np.square(flat, dtype=np.float64).sum(axis=rest)
    return found

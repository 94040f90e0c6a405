"""Every layer's weights at every width that may be chosen, rounded as a compilation rounds them.

Sensitivities and candidates must be measured with the weights that will be used: rounding that
minds the layer's inputs leaves several times less error in its output than round to nearest, and
not by the same factor everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Op, constants, producers
from qcc.passmgr.context import PassContext
from qcc.verify.blas import one_thread
from qcc.verify.ort import OrtModel
from qcc.verify.windows import Window
from qcc_passes.checkpoint import Checkpoint
from qcc_passes.head import Head
from qcc_passes.layers import Layer
from qcc_passes.rounding import nearest, round_rows, search_scale

Array = NDArray[Any]
Batch = Mapping[str, Array]
Variants = Mapping[tuple[str, int], Array]
"""Weights by (layer, bits), float32, of the shape that the layer's weights have."""

_POSITIONS_PER_IMAGE: Final = 256
_DAMPING: Final = 0.01


def round_layers(
    top: Head, widths: Mapping[str, Sequence[int]], batches: Sequence[Batch], ctx: PassContext
) -> dict[tuple[str, int], Array]:
    """The weights of every layer at each of its ``widths``, rounded on its fp32 inputs over ``batches``.

    Layers without widths are left out. Kept in the context's cache.
    """
    chosen = [layer for layer in top.layers if widths.get(layer.name)]
    grams = _grams(top, chosen, batches, ctx)
    arrays = constants(top.graph)
    table = {layer.name: list(widths[layer.name]) for layer in chosen}
    kept = Checkpoint.of("rounded", top.graph, ctx, table, sum(len(next(iter(b.values()))) for b in batches))

    def step(_: int, layer: Layer) -> dict[str, Array]:
        gram, weights = grams[layer.name], arrays[layer.weight]
        with one_thread():
            return {f"{bits}:{layer.name}": _rounded(weights, gram, bits) for bits in table[layer.name]}

    found = kept.accumulate("round", chosen, step)
    return {(layer.name, bits): found[f"{bits}:{layer.name}"] for layer in chosen for bits in table[layer.name]}


def round_plainly(weights: Array, bits: int) -> Array:
    """Weights rounded to nearest per output channel, at the scale of least squared error."""
    rows = weights.astype(np.float64).reshape(len(weights), -1)
    codes = nearest(rows, search_scale(rows, np.ones(rows.shape[1]), bits), bits)
    plain: Array = codes.weights.reshape(weights.shape).astype(np.float32)
    return plain


def _grams(top: Head, chosen: Sequence[Layer], batches: Sequence[Batch], ctx: PassContext) -> dict[str, Array]:
    """The Gram matrices of each layer's input columns, [groups, K, K] float64, per position."""
    made_by = producers(top.graph)
    ops = {layer.name: made_by[layer.name] for layer in chosen}
    read = sorted({o.operands[0].name for o in ops.values()} - {v.name for v in top.graph.inputs})
    model = OrtModel(export_onnx(top.graph, keep=read), threads=ctx.threads)
    kept = Checkpoint.of("grams", top.graph, ctx, [layer.name for layer in chosen], len(batches))

    def step(_: int, inputs: Batch) -> dict[str, Array]:
        values = {**inputs, **model.run(inputs)}
        with one_thread():
            return {name: _gram(o, values[o.operands[0].name]) for name, o in ops.items()}

    return kept.accumulate("grams", batches, step)


def _gram(o: Op, x: Array) -> Array:
    """The Gram matrices [groups, K, K] of one batch's columns at evenly spread positions."""
    columns = _columns(o, x).astype(np.float32)
    product: Array = (columns @ columns.transpose(0, 2, 1)).astype(np.float64) / columns.shape[2]
    return product


def _columns(o: Op, x: Array) -> Array:
    """What each group of a layer multiplies its weights with, [groups, K, positions]."""
    if o.kind == "dense":
        return x.reshape(1, -1, x.shape[-1]).transpose(0, 2, 1)
    groups = o.int_attr("groups")
    window = Window.of(o)
    parts = []
    for image in range(len(x)):
        patches = window.columns(x[image : image + 1])[0]
        step = -(-patches.shape[-1] // _POSITIONS_PER_IMAGE)
        some = patches[..., image % step :: step]
        parts.append(some.reshape(groups, -1, some.shape[-1]))
    return np.concatenate(parts, axis=2)


def _rounded(weights: Array, gram: Array, bits: int) -> Array:
    """One layer's weights at one width; ``gram`` [groups, K, K]."""
    rows = weights.astype(np.float64).reshape(len(gram), len(weights) // len(gram), -1)
    rounded: Array = round_rows(rows, gram, bits, _DAMPING).weights.reshape(weights.shape).astype(np.float32)
    return rounded

"""Every layer's weights at every width that may be chosen, rounded as a compilation rounds them.

Sensitivities and candidates must be measured with the weights that will be used: rounding that
minds the layer's inputs leaves several times less error in its output than round to nearest, and
not by the same factor everywhere. Nor does the mean of that error count, which the bias takes up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph, Op, constant, constants, producers, rewrite
from qcc.passmgr.context import PassContext
from qcc.verify.blas import one_thread
from qcc.verify.ort import OrtModel
from qcc.verify.windows import Window
from qcc_passes.checkpoint import Checkpoint
from qcc_passes.head import Head
from qcc_passes.layers import LAYER_KINDS, Layer
from qcc_passes.rounding import Levels, nearest, round_rows, search_scale
from qcc_passes.samples import samples_in

Array = NDArray[Any]
Batch = Mapping[str, Array]

_POSITIONS_PER_IMAGE: Final = 256
_DAMPING: Final = 0.01


@dataclass(frozen=True, slots=True)
class Variant:
    """Rounded weights of a layer, of its weights' shape, and the bias [O] that keeps its mean output; float32."""

    weights: Array
    bias: Array


Variants = Mapping[tuple[str, int], Variant]
"""By (layer, bits)."""


def own_names(layer: str) -> tuple[str, str]:
    """What the weights and the bias of a layer are called in the graph that ``with_variants`` gives."""
    return f"{layer}.rounded.weights", f"{layer}.rounded.bias"


def with_variants(graph: Graph, variants: Mapping[str, Variant]) -> Graph:
    """``graph`` with constants of their own for the layers that ``variants`` names."""

    def rule(o: Op) -> list[Op] | None:
        if o.kind not in LAYER_KINDS or (variant := variants.get(o.result.name)) is None:
            return None
        names = own_names(o.result.name)
        own = [constant(n, a) for n, a in zip(names, (variant.weights, variant.bias), strict=True)]
        return [*own, replace(o, operands=(o.operands[0], *(c.result for c in own), *o.operands[3:]))]

    return rewrite(graph, rule)


def round_layers(
    top: Head, widths: Mapping[str, Sequence[int]], batches: Sequence[Batch], ctx: PassContext
) -> dict[tuple[str, int], Variant]:
    """Every layer at each of its ``widths``, rounded on its fp32 inputs over ``batches``.

    Layers without widths are left out. Kept in the context's cache.
    """
    chosen = [layer for layer in top.layers if widths.get(layer.name)]
    seen = _moments(top, chosen, batches, ctx)
    arrays, made_by = constants(top.graph), producers(top.graph)
    table = {layer.name: list(widths[layer.name]) for layer in chosen}
    kept = Checkpoint.of("rounded", top.graph, ctx, table, sum(map(samples_in, batches)))

    def step(_: int, layer: Layer) -> dict[str, Array]:
        bias = arrays[made_by[layer.name].operands[2].name]
        found: dict[str, Array] = {}
        with one_thread():
            for bits in table[layer.name]:
                variant = _rounded(arrays[layer.weight], bias, *seen[layer.name], bits)
                found |= {f"w{bits}:{layer.name}": variant.weights, f"b{bits}:{layer.name}": variant.bias}
        return found

    found = kept.accumulate("round", chosen, step)
    return {
        (layer.name, bits): Variant(found[f"w{bits}:{layer.name}"], found[f"b{bits}:{layer.name}"])
        for layer in chosen
        for bits in table[layer.name]
    }


def round_plainly(weights: Array, bits: int) -> Array:
    """Weights rounded to nearest per output channel, at the scale of least squared error."""
    rows = weights.astype(np.float64).reshape(len(weights), -1)
    codes = nearest(rows, search_scale(rows, np.ones(rows.shape[1]), Levels.of(bits)), Levels.of(bits))
    plain: Array = codes.weights.reshape(weights.shape).astype(np.float32)
    return plain


def _moments(
    top: Head, chosen: Sequence[Layer], batches: Sequence[Batch], ctx: PassContext
) -> dict[str, tuple[Array, Array]]:
    """Covariance [groups, K, K] and mean [groups, K] of each layer's input columns, float64."""
    made_by = producers(top.graph)
    ops = {layer.name: made_by[layer.name] for layer in chosen}
    read = sorted({o.operands[0].name for o in ops.values()} - {v.name for v in top.graph.inputs})
    model = OrtModel(export_onnx(top.graph, keep=read), threads=ctx.threads)
    kept = Checkpoint.of("moments", top.graph, ctx, list(ops), list(map(samples_in, batches)))

    def step(_: int, inputs: Batch) -> dict[str, Array]:
        values = {**inputs, **model.run(inputs)}
        found = {}
        with one_thread():
            for name, o in ops.items():
                columns = _columns(o, values[o.operands[0].name]).astype(np.float32)
                count = columns.shape[2]
                found[f"gram:{name}"] = (columns @ columns.transpose(0, 2, 1)).astype(np.float64) / count
                found[f"mean:{name}"] = columns.mean(axis=2, dtype=np.float64)
        return found

    sums = kept.accumulate("moments", batches, step)
    table = {}
    for name in ops:
        gram, mean = (sums[f"{what}:{name}"] / len(batches) for what in ("gram", "mean"))
        table[name] = gram - mean[:, :, None] * mean[:, None, :], mean
    return table


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


def _rounded(weights: Array, bias: Array, covariance: Array, mean: Array, bits: int) -> Variant:
    """One layer at one width: least squared error of its output around the mean, and the mean in the bias."""
    rows = weights.astype(np.float64).reshape(len(covariance), len(weights) // len(covariance), -1)
    codes = round_rows(rows, covariance, Levels.of(bits), _DAMPING).weights
    shift = np.einsum("grk,gk->gr", rows - codes, mean).reshape(-1)
    return Variant(codes.reshape(weights.shape).astype(np.float32), (bias + shift).astype(np.float32))

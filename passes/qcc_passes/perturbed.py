"""Rows of perturbations: how every choice alone changes the outputs, on one batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder, infer
from qcc.ir.graph import Graph, Op, Stage, constants, producers
from qcc.ir.types import Quant
from qcc.passmgr.context import PassContext
from qcc.verify.ort import OrtModel
from qcc_passes.activations import EXACT, Site, on_grid, snapped
from qcc_passes.curvature import Network, gauss_newton_cotangents, whitened
from qcc_passes.head import Head, softmax
from qcc_passes.variants import Variant, Variants, own_names, with_variants

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Grids = Mapping[tuple[str, int], Quant]
"""The grid of each (site, bits)."""


class ExactRows:
    """The true changes: what follows each choice is computed again."""

    def __init__(
        self,
        top: Head,
        weights: Variants,
        sites: Sequence[Site],
        grids: Grids,
        spread: Arrays,
        threads: int,
        labels: Sequence[Array] | None,
    ) -> None:
        self._top, self._spread, self._labels = top, spread, labels
        kept = [o.result.name for o in top.graph.ops if o.kind != "constant" and o.result.type.dtype == "f32"]
        self._forward = OrtModel(export_onnx(top.graph, keep=kept), threads=threads)
        some = {name: variant for (name, _), variant in weights.items()}
        reruns = {
            name: _Rerun.of(with_variants(top.graph, {name: variant}), own_names(name), threads)
            for name, variant in some.items()
        }
        self._choices = [
            (reruns[name], dict(zip(own_names(name), (variant.weights, variant.bias), strict=True)))
            for (name, _), variant in weights.items()
        ]
        roots = {site.name: site.roots for site in sites}
        for (name, _), quant in grids.items():
            graph = snapped(top.graph, dict.fromkeys(roots[name], quant))
            self._choices.append((_Rerun.of(graph, [f"{root}{EXACT}" for root in roots[name]], threads), {}))

    def sums(self, index: int, inputs: Arrays) -> dict[str, Array]:
        """``gram`` [choices, choices] of one batch, and with labels the summed changes of ``loss`` [choices]."""
        values = {**inputs, **self._forward.run(inputs)}
        outputs = {name: values[name] for name in self._top.axes}
        rows, losses = [], []
        for rerun, given in self._choices:
            changed = {**outputs, **rerun.outputs(values, given)}
            deltas = {name: changed[name] - outputs[name] for name in outputs}
            rows.append(whitened(self._top, outputs, deltas, self._spread).ravel())
            if self._labels is not None:
                name, truth = self._top.classifier, self._labels[index]
                losses.append(_cross_entropy(changed[name], truth) - _cross_entropy(outputs[name], truth))
        matrix = np.array(rows)
        return {"gram": matrix @ matrix.T} | ({"loss": np.array(losses)} if losses else {})


@dataclass(frozen=True, slots=True)
class _Rerun:
    """What depends on some values, as a model that takes these and everything else that it reads."""

    model: OrtModel
    reads: tuple[str, ...]

    @classmethod
    def of(cls, graph: Graph, start: Sequence[str], threads: int) -> _Rerun:
        suffix = depending(graph, start)
        return cls(OrtModel(export_onnx(suffix), threads=threads, arena=False), tuple(v.name for v in suffix.inputs))

    def outputs(self, values: Arrays, given: Arrays) -> dict[str, Array]:
        """The outputs that change with ``given`` values; an exact value is what its rounding took."""
        feeds = {n: given[n] if n in given else values[n.removesuffix(EXACT)] for n in self.reads}
        return self.model.run(feeds)


def depending(graph: Graph, start: Sequence[str]) -> Graph:
    """The operations that depend on the values ``start``, as a graph that takes these and all else that they read."""
    changed = set(start)
    ops: list[Op] = []
    for o in graph.ops:
        if o.kind != "constant" and o.result.name not in changed and any(v.name in changed for v in o.operands):
            changed.add(o.result.name)
            ops.append(o)
    made = {o.result.name for o in ops}
    arrays = producers(graph)
    reads = {v.name: v for o in ops for v in o.operands if v.name not in made}
    fixed = [arrays[n] for n in reads if n in arrays and arrays[n].kind == "constant" and n not in start]
    inputs = tuple(v for n, v in reads.items() if n not in {o.result.name for o in fixed})
    outputs = tuple(v for v in graph.outputs if v.name in made)
    return replace(graph, inputs=inputs, ops=(*fixed, *ops), outputs=outputs)


def _cross_entropy(logits: Array, labels: Array) -> float:
    """Summed over the samples, nats."""
    p = softmax(logits.astype(np.float64), -1)
    return float(-np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-300)).sum())


class LinearRows:
    """First-order changes: those of layers' own outputs and of activations, times cotangents there."""

    def __init__(
        self,
        top: Head,
        weights: Variants,
        sites: Sequence[Site],
        grids: Grids,
        spread: Arrays,
        ctx: PassContext,
        probes: int,
    ) -> None:
        self._network = Network(top, ctx.threads)
        self._spread, self._seed, self._probes = spread, ctx.seed, probes
        self._count = len(weights) + len(grids)
        self._weight_rows = {choice: i for i, choice in enumerate(weights)}
        self._grid_rows = {choice: i for i, choice in enumerate(grids, len(weights))}
        self._grids = grids
        self._bits: dict[str, list[int]] = {}
        for name, bits in weights:
            self._bits.setdefault(name, []).append(bits)
        self._roots = {root: site.name for site in sites for root in site.roots}
        self._widths = sorted({bits for _, bits in grids})
        made_by, arrays = producers(top.graph), constants(top.graph)
        self._layers = {
            name: changes(made_by[name], [weights[name, bits] for bits in widths], arrays, ctx.threads)
            for name, widths in self._bits.items()
        }

    def sums(self, index: int, inputs: Arrays) -> dict[str, Array]:
        """``gram`` [choices, choices] of one batch."""
        values = self._network.values(inputs)
        rng = np.random.default_rng([self._seed, index])
        seeds = [gauss_newton_cotangents(self._network.top, values, self._spread, rng) for _ in range(self._probes)]
        samples = len(next(iter(inputs.values())))
        rows = np.zeros((self._count, self._probes, samples))
        for steps in zip(*(self._network.walk(values, seed) for seed in seeds), strict=True):
            o = steps[0][0]
            self._add_weights(rows, o, values, [inner for _, _, inner in steps])
            self._add_activations(rows, o, values, [grad for _, grad, _ in steps])
        matrix = rows.reshape(len(rows), -1) / np.sqrt(self._probes)
        return {"gram": matrix @ matrix.T}

    def _add_weights(self, rows: Array, o: Op, values: Arrays, grads: Sequence[Array]) -> None:
        name = o.result.name
        if (model := self._layers.get(name)) is None:
            return
        x = values[o.operands[0].name]
        places = [self._weight_rows[name, bits] for bits in self._bits[name]]
        for sample in range(len(x)):
            (change,) = model.run({"x": np.ascontiguousarray(x[sample : sample + 1])}).values()
            flat = by_choice(o, change, len(places))
            for probe, grad in enumerate(grads):
                rows[places, probe, sample] += flat @ grad[sample].ravel()

    def _add_activations(self, rows: Array, o: Op, values: Arrays, grads: Sequence[Array]) -> None:
        name = o.result.name
        if (site := self._roots.get(name)) is None:
            return
        for bits in self._widths:
            change = on_grid(values[name], self._grids[site, bits]) - values[name]
            for probe, grad in enumerate(grads):
                products = (change * grad).reshape(len(change), -1).sum(axis=1, dtype=np.float64)
                rows[self._grid_rows[site, bits], probe] += products


def changes(o: Op, variants: Sequence[Variant], arrays: Arrays, threads: int) -> OrtModel:
    """One layer with the changes of all ``variants`` as its weights: x [1, …] to [1, groups * variants * …]."""
    b = GraphBuilder("changes")
    x = b.input("x", (1, *o.operands[0].type.shape[1:]))
    groups = o.int_attr("groups") if o.kind == "conv2d" else 1
    exact = [arrays[v.name] for v in o.operands[1:3]]
    weights, bias = (
        np.stack([(a - e).reshape(groups, -1, *e.shape[1:]) for a in changed], axis=1).reshape(-1, *e.shape[1:])
        for changed, e in zip(([v.weights for v in variants], [v.bias for v in variants]), exact, strict=True)
    )
    operands = [x, b.constant(weights.astype(np.float32)), b.constant(bias.astype(np.float32))]
    kept = {k: a for k, a in o.attrs.items() if k not in ("lo", "hi")}
    y = b.append(infer(Stage.FLOAT, o.kind, operands, "y", kept))
    return OrtModel(export_onnx(b.graph([y])), threads=threads, arena=False)


def by_choice(o: Op, change: Array, choices: int) -> Array:
    """What ``changes`` gives as [choices, elements of the layer's output]."""
    if o.kind == "dense":
        rows: Array = change.reshape(-1, choices, o.result.type.shape[-1]).transpose(1, 0, 2)
    else:
        rows = change.reshape(o.int_attr("groups"), choices, -1).transpose(1, 0, 2)
    return rows.reshape(choices, -1)

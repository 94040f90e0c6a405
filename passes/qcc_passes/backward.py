"""Reverse-mode differentiation over a FLOAT graph: the one backward pass that calibration and sensitivity share.

In fp32 the adjoint of a convolution is a convolution again, which onnxruntime runs about ten times
as fast as numpy does (mobilenet_v2, 8 samples on two cores: 1.2 s against 6.7 s); in float64,
where theory is checked to many digits, numpy does everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Op
from qcc.ir.types import BATCH
from qcc.verify.blas import one_thread
from qcc.verify.ort import OrtModel
from qcc_passes import vjp_conv
from qcc_passes.layers import LAYER_KINDS
from qcc_passes.vjp import unclamped, unclamped_vjp

Array = NDArray[Any]


class Backward:
    """Reverse-mode differentiation of a FLOAT graph.

    ``values`` of the methods holds what the graph computed, by name; constants found there stand in
    for the graph's own. The precision is that of the cotangents: float32 or float64.
    """

    def __init__(self, graph: Graph, threads: int) -> None:
        self._graph = graph
        self._threads = threads
        self._constants = {o.result.name: o.array for o in graph.ops if o.kind == "constant"}
        self._convs = {o.result.name: m for o in graph.ops if (m := self._reversed(o)) is not None}

    def cotangents(self, values: Mapping[str, Array], seeds: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """The cotangent of each value that the seeded ones depend on, last values first.

        Nothing is given for values that also reach a seed through an operation without a derivative.
        """
        grads = dict(seeds)
        broken: set[str] = set()
        for o, grad, _ in self._walk(values, grads, broken, strict=False):
            yield o.result.name, grad
        yield from ((v.name, grads[v.name]) for v in self._graph.inputs if v.name in grads and v.name not in broken)

    def weight_gradients(
        self, values: Mapping[str, Array], seeds: Mapping[str, Array], wrt: Iterable[str]
    ) -> dict[str, Array]:
        """Gradients of the layers' weights named in ``wrt``, summed over the samples.

        Zero where nothing that is seeded depends on a layer. Raises PassError when an operation on
        the way has no derivative.
        """
        wanted = frozenset(wrt)
        found = {name: np.zeros_like(self._read(values, name)) for name in wanted}
        with one_thread():
            for o, _, inner in self.walk(values, seeds):
                if o.kind in LAYER_KINDS and (weight := o.operands[1].name) in wanted:
                    x = values[o.operands[0].name]
                    found[weight] = found[weight] + weight_gradient(o, x, found[weight].shape, inner)
        return found

    def walk(self, values: Mapping[str, Array], seeds: Mapping[str, Array]) -> Iterator[tuple[Op, Array, Array]]:
        """Each operation that the seeded values depend on, last first, with cotangents of its result.

        The second of these is that before the clamp which the operation ends in. Raises PassError.
        """
        return self._walk(values, dict(seeds), set(), strict=True)

    def _walk(
        self, values: Mapping[str, Array], grads: dict[str, Array], broken: set[str], strict: bool
    ) -> Iterator[tuple[Op, Array, Array]]:
        for o in reversed(self._graph.ops):
            name = o.result.name
            if o.kind == "constant" or (name not in grads and name not in broken):
                continue
            operands = [v.name for v in o.operands if v.name not in self._constants and v.type.dtype == "f32"]
            if name in broken:
                broken.update(operands)
                continue
            grad = grads.pop(name)
            inner = unclamped(o, values[name], grad)
            yield o, grad, inner
            try:
                parts = self._vjp(o, values, inner)
            except PassError:
                if strict:
                    raise
                broken.update(operands)
                continue
            for v, part in zip(o.operands, parts, strict=True):
                if part is not None and v.name in operands:
                    grads[v.name] = grads[v.name] + part if v.name in grads else part

    def _read(self, values: Mapping[str, Array], name: str) -> Array:
        return values[name] if name in values else self._constants[name]

    def _vjp(self, o: Op, values: Mapping[str, Array], grad: Array) -> list[Array | None]:
        """The operands' cotangents from that of the result before its clamp. Raises PassError without a derivative."""
        reverse = self._convs.get(o.result.name)
        if reverse is not None and grad.dtype == np.float32 and o.operands[1].name not in values:
            (dx,) = reverse.run({"grad": np.ascontiguousarray(grad)}).values()
            return [dx, None, None, *([grad] if len(o.operands) == 4 else [])]
        operands = [self._read(values, v.name) for v in o.operands]
        return list(unclamped_vjp(o, operands, values[o.result.name], grad))

    def _reversed(self, o: Op) -> OrtModel | None:
        """A convolution's adjoint for x: that of the dilated cotangent with flipped weights.

        None for other operations, and where more is padded than the kernel reaches.
        """
        if o.kind != "conv2d" or o.operands[1].name not in self._constants:
            return None
        w = self._constants[o.operands[1].name]
        groups, strides, dilations = o.int_attr("groups"), o.ints_attr("strides"), o.ints_attr("dilations")
        size, kernel = o.operands[0].type.shape[2:], w.shape[2:]
        before = [d * (k - 1) - p for d, k, p in zip(dilations, kernel, o.ints_attr("pads"), strict=False)]
        dilated = [(n - 1) * s + 1 for n, s in zip(o.result.type.shape[2:], strides, strict=True)]
        after = [
            n + d * (k - 1) - g - b for n, d, k, g, b in zip(size, dilations, kernel, dilated, before, strict=True)
        ]
        if min(*before, *after) < 0:
            return None
        b = GraphBuilder("adjoint")
        grad = b.input("grad", (BATCH, *o.result.type.shape[1:]))
        if strides != (1, 1):
            grad = b.op("dilate2d", [grad], factors=strides)
        swapped = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)[..., ::-1, ::-1]
        kernels = b.constant(swapped.reshape(-1, *swapped.shape[2:]))
        bias = b.constant(np.zeros(kernels.type.shape[0], np.float32))
        pads = (*before, *after)
        dx = b.op("conv2d", [grad, kernels, bias], groups=groups, strides=(1, 1), dilations=dilations, pads=pads)
        return OrtModel(export_onnx(b.graph([dx])), threads=self._threads, arena=False)


def weight_gradient(o: Op, x: Array, shape: tuple[int, ...], grad: Array) -> Array:
    """The gradient of a layer's weights, of ``shape``, from the cotangent before its clamp."""
    if o.kind == "conv2d":
        return vjp_conv.conv2d_weights(o, x, shape, grad)
    product: Array = grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return product

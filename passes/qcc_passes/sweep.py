"""Walking a QUANTIZED graph operation by operation on calibration data, fp32 and quantized side by side.

Both sides see the same samples; a value is dropped after its last reader, and quantized ones are
held as codes, so a sweep costs the memory of the widest cut through the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph, Op, Stage, rewrite
from qcc.ir.types import DTYPES, Quant
from qcc.verify.ort import OrtModel

Array = NDArray[Any]


@dataclass(slots=True)
class Sweep:
    """The values of ``graph`` on some samples, in parts, as far as ``run`` has come."""

    graph: Graph
    parts: Sequence[Mapping[str, Array]]
    threads: int
    _constants: dict[str, Op] = field(default_factory=dict)
    _plain: dict[str, Op] = field(default_factory=dict)
    _exact: dict[str, list[Array]] = field(default_factory=dict)
    _codes: dict[str, list[Array]] = field(default_factory=dict)

    def run(self, revise: Revise) -> Graph:
        """Run every operation in order; ``revise`` may replace the constants that it reads.

        Later operations see what the revised ones compute. Constants that several operations read
        change for all that follow. Returns the graph with its revised constants.
        """
        for v in self.graph.inputs:
            self._exact[v.name] = [part[v.name] for part in self.parts]
            grid = v.type.quant
            coded = grid is not None and _stored(grid)
            self._codes[v.name] = [grid.quantize(p[v.name]) if grid and coded else p[v.name] for p in self.parts]
        last = {v.name: i for i, o in enumerate(self.graph.ops) for v in o.operands}
        changed: dict[str, Op] = {}
        for index, o in enumerate(self.graph.ops):
            if o.kind == "constant":
                self._constants[o.result.name] = o
                self._plain[o.result.name] = replace(o, results=(o.result.typed(quant=None),))
                continue
            revised = {c.result.name: c for c in revise(Step(o, self))}
            changed |= revised
            self._constants |= revised
            self._advance(o)
            for v in o.operands:
                if last[v.name] == index:
                    self._exact.pop(v.name, None)
                    self._codes.pop(v.name, None)
        return rewrite(self.graph, lambda o: [changed[o.result.name]] if o.result.name in changed else None)

    def feeds(self, o: Op, part: int, exact: bool) -> dict[str, Array]:
        """The variable operands of ``o`` as reals, in fp32 or on their grids."""
        variable = [v for v in o.operands if v.name not in self._constants]
        if exact:
            return {v.name: self._exact[v.name][part] for v in variable}
        return {v.name: _unpack(v.type.quant, self._codes[v.name][part]) for v in variable}

    def alone(self, o: Op, exact: bool) -> OrtModel:
        """``o`` as a model by itself, with its constants in fp32 or on their grids."""
        if exact:
            o = unquantized(o)
        known = self._plain if exact else self._constants
        made = {v.name: known[v.name] for v in o.operands if v.name in known}
        inputs = tuple(dict.fromkeys(v for v in o.operands if v.name not in made))
        reads = tuple(made[v.name].result if v.name in made else v for v in o.operands)
        graph = Graph("step", Stage.QUANTIZED, inputs, (*made.values(), replace(o, operands=reads)), o.results)
        return OrtModel(export_onnx(graph), threads=self.threads, optimize=False)

    def found(self, o: Op, exact: list[Array]) -> None:
        """Take over the result of ``o`` in fp32, part by part, which need not be computed again."""
        self._exact[o.result.name] = exact

    def _advance(self, o: Op) -> None:
        name, parts = o.result.name, range(len(self.parts))
        if name not in self._exact:
            model = self.alone(o, exact=True)
            self._exact[name] = [model.run(self.feeds(o, part, True))[name] for part in parts]
        model = self.alone(o, exact=False)
        self._codes[name] = [_pack(o.result.type.quant, model.run(self.feeds(o, part, False))[name]) for part in parts]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation about to run."""

    op: Op
    _sweep: Sweep

    def operand(self, index: int, part: int) -> tuple[Array, Array]:
        """An operand that is no constant, on one part of the samples: in fp32 and on its grid."""
        name = self.op.operands[index].name
        return self._sweep.feeds(self.op, part, True)[name], self._sweep.feeds(self.op, part, False)[name]

    def unclamped(self) -> Iterator[tuple[Array, Array]]:
        """Part by part, the result in fp32 and from quantized operands, both before the clamp and off the grid."""
        lo, hi = self.op.float_attr("lo", -math.inf), self.op.float_attr("hi", math.inf)
        free = {k: a for k, a in self.op.attrs.items() if k not in ("lo", "hi")}
        o = replace(self.op, results=(self.op.result.typed(quant=None),), attrs=free)
        models = {exact: self._sweep.alone(o, exact) for exact in (True, False)}
        clamped: list[Array] = []
        for part in range(len(self._sweep.parts)):
            exact, quantized = (
                model.run(self._sweep.feeds(o, part, side))[o.result.name] for side, model in models.items()
            )
            clamped.append(np.clip(exact, lo, hi) if lo > -math.inf or hi < math.inf else exact)
            yield exact, quantized
        self._sweep.found(self.op, clamped)


Revise = Callable[[Step], Sequence[Op]]
"""New ``constant`` operations in place of those that the step reads, by name; none leaves it as it is."""


def unquantized(o: Op) -> Op:
    """The same operation on real values: no operand or result lies on a grid."""
    return replace(
        o,
        operands=tuple(v.typed(quant=None) for v in o.operands),
        results=tuple(v.typed(quant=None) for v in o.results),
    )


def _stored(quant: Quant | None) -> bool:
    """Whether values are held as codes, in a quarter or half of the memory, and nothing lost."""
    return quant is not None and quant.bits <= 16 and quant.axis is None


def _pack(quant: Quant | None, snapped: Array) -> Array:
    """Codes of values that lie on their grid already, or nearly: a product finds them as surely as a division."""
    if quant is None or not _stored(quant):
        return snapped
    codes = snapped * np.float32(1 / float(quant.scale[0]))
    np.rint(codes, out=codes)
    codes += quant.zero_point
    return np.clip(codes, quant.qmin, quant.qmax, out=codes).astype(DTYPES[quant.dtype])


def _unpack(quant: Quant | None, stored: Array) -> Array:
    if quant is None or not _stored(quant):
        return stored
    unsigned = stored.view(f"u{stored.itemsize}")
    table = quant.dequantize(np.arange(1 << 8 * stored.itemsize).astype(unsigned.dtype).view(stored.dtype))
    return np.take(table, unsigned)

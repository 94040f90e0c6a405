"""Which layers lose most: every integer value against the real value of the same name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.graph import Graph, Op, Stage, Value, constants
from qcc.verify.compare import ratio_db
from qcc.verify.interp import evaluate, evaluate_op

Array = NDArray[Any]

EQUALIZED: Final = ".equalized"
"""Ends the names of values that are those of the model with their channels scaled."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One value of the integer graph, in signal-to-noise ratios (decibels).

    ``sqnr_db`` is the dequantized value against the real one: all error up to here. ``local_db`` is
    what the operation alone adds: its dequantized result against the real operation on the same
    dequantized operands. ``loss_db`` is by how much ``sqnr_db`` falls short of its worst operand's.
    """

    value: str
    op: str
    sqnr_db: float
    local_db: float | None
    loss_db: float | None


@dataclass(slots=True)
class _Power:
    """Sums of squares of a signal and its noise."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Array, test: Array) -> None:
        exact = reference.astype(np.float64)
        self.signal += float(np.square(exact).sum())
        self.noise += float(np.square(exact - test).sum())

    @property
    def db(self) -> float:
        return ratio_db(self.signal, self.noise)


@dataclass(slots=True)
class _Row:
    op: Op | None
    whole: _Power = field(default_factory=_Power)
    local: _Power | None = None


class LayerTable:
    """Accumulates the table over batches of data.

    ``integer`` is at stage INTEGER, ``real`` at FLOAT or QUANTIZED (its grids are then left out, so
    that it computes in reals). Values count as the same when name and shape agree, but for ``EQUALIZED``
    at the end of the integer one's: its channels are scaled back first, by factors fitted to the first batch.
    """

    def __init__(self, integer: Graph, real: Graph) -> None:
        if integer.stage is not Stage.INTEGER or real.stage is Stage.INTEGER:
            raise VerifyError("the table of layers compares a graph at stage integer with a real one")
        self._integer = integer
        self._real = without_grids(real)
        self._arrays = constants(self._real)
        codes = {v.name: v for v in (*integer.inputs, *(o.result for o in integer.ops if o.kind != "constant"))}
        self._codes: Mapping[str, Value] = codes
        self._gains: dict[str, Array] = {}
        self._rows = {v.name: _Row(None) for v in self._real.inputs if self._matches(v)}
        for o in self._real.ops:
            if o.kind != "constant" and self._matches(o.result):
                known = all(v.name in self._rows or v.name in self._arrays for v in o.operands)
                self._rows[o.result.name] = _Row(o, local=_Power() if known else None)

    def add(self, reals: Mapping[str, Array], codes: Mapping[str, Array]) -> None:
        """Measure one batch: the real graph on ``reals``, the integer graph on ``codes``."""
        names = list(self._rows)
        wanted = evaluate(self._real, self._real_inputs(reals, codes), keep=names)
        raw = evaluate(self._integer, codes, keep=[self._twin(name) for name in names])
        got = {name: self._scaled_back(name, raw[self._twin(name)], wanted[name]) for name in names}
        for name, row in self._rows.items():
            row.whole.add(wanted[name], got[name])
            if row.op is not None and row.local is not None:
                operands = [got[v.name] if v.name in got else self._arrays[v.name] for v in row.op.operands]
                row.local.add(evaluate_op(row.op, operands), got[name])

    def rows(self) -> tuple[LayerRow, ...]:
        """The table in the order of the graph."""
        return tuple(self._row(name, row) for name, row in self._rows.items())

    def _row(self, name: str, row: _Row) -> LayerRow:
        if row.op is None:
            return LayerRow(name, "input", row.whole.db, None, None)
        before = [self._rows[v.name].whole.db for v in row.op.operands if v.name in self._rows]
        loss = min(before) - row.whole.db if before and np.isfinite(min(before)) else None
        return LayerRow(name, row.op.kind, row.whole.db, None if row.local is None else row.local.db, loss)

    def _twin(self, name: str) -> str:
        """What the integer graph calls the real value ``name``, where it has it."""
        return name if name in self._codes else name + EQUALIZED

    def _scaled_back(self, name: str, codes: Array, wanted: Array) -> Array:
        """The reals of ``codes``, on the scale of the real graph."""
        twin = self._twin(name)
        reals = _dequantized(self._codes[twin], codes)
        if twin == name:
            return reals
        if name not in self._gains:
            axes = tuple(a for a in range(reals.ndim) if a != 1)
            energy = np.square(reals, dtype=np.float64).sum(axis=axes, keepdims=True)
            fit = (reals.astype(np.float64) * wanted).sum(axis=axes, keepdims=True)
            self._gains[name] = np.where(energy > 0, fit / np.where(energy > 0, energy, 1), 1).astype(np.float32)
        scaled: Array = reals * self._gains[name]
        return scaled

    def _matches(self, v: Value) -> bool:
        twin = self._codes.get(self._twin(v.name))
        return v.type.dtype == "f32" and twin is not None and twin.type.shape == v.type.shape

    def _real_inputs(self, reals: Mapping[str, Array], codes: Mapping[str, Array]) -> dict[str, Array]:
        """What the real graph takes: ``reals``, or the reals of ``codes`` where its input is another one."""
        return {v.name: self._real_input(v, reals, codes) for v in self._real.inputs}

    def _real_input(self, v: Value, reals: Mapping[str, Array], codes: Mapping[str, Array]) -> Array:
        given, twin = reals.get(v.name), self._codes.get(v.name)
        same_border = twin is not None and twin.type.shape == v.type.shape
        if given is not None and given.dtype == v.type.numpy and given.shape[1:] == v.type.shape[1:]:
            return given
        if not same_border or twin is None:
            raise VerifyError(f"graph @{self._real.name}: no reals for the input '{v.name}'")
        return _dequantized(twin, codes[v.name])


_REAL: Final = "f32"


def without_grids(graph: Graph) -> Graph:
    """``graph`` with no real value on a grid: it computes in reals throughout."""

    def plain(v: Value) -> Value:
        return v.typed(quant=None) if v.type.dtype == _REAL else v

    ops = tuple(
        replace(o, operands=tuple(map(plain, o.operands)), results=tuple(map(plain, o.results))) for o in graph.ops
    )
    return replace(graph, inputs=tuple(map(plain, graph.inputs)), ops=ops, outputs=tuple(map(plain, graph.outputs)))


def _dequantized(value: Value, codes: Array) -> Array:
    return codes if value.type.quant is None else value.type.quant.dequantize(codes)

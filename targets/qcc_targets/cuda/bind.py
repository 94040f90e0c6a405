"""From serial loop nests to CUDA threads: one thread per iteration of the outer loops.

The generic templates of the CPU target, asked for one lane, give functions whose statements are perfect
chains of loops over the results; what a chain surrounds computes one result and shares nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final

from tvm import tirx

from qcc.errors import TargetError

THREADS: Final = 256
"""Threads of a block of a generic kernel."""

_MOST_BLOCKS: Final = (1 << 31) - 1


def bound(func: tirx.PrimFunc) -> tuple[tirx.PrimFunc, int]:
    """``func`` with its chains of loops spread over blocks of ``THREADS`` threads, and the number of blocks.

    Raises TargetError where a statement is no chain of loops, or takes more threads than a launch has.
    """
    statements = _sequence(func.body)
    declared = [s for s in statements if _kind(s) == "DeclBuffer"]
    rest = [s for s in statements if _kind(s) != "DeclBuffer"]
    # A result that is the only one has no loop around it, but local memory of its own.
    alone = any(_kind(s) == "AllocBuffer" for s in rest)
    chains = [_Chain(_joined(rest))] if alone else [_Chain(s) for s in rest]
    blocks = -(-max(chain.threads for chain in chains) // THREADS)
    if blocks > _MOST_BLOCKS or blocks * THREADS >= 1 << 31:
        raise TargetError(f"a kernel of {blocks * THREADS} threads is beyond CUDA's limits: use a smaller batch")
    block, thread = (_axis(name) for name in ("blockIdx.x", "threadIdx.x"))
    number = block.var * THREADS + thread.var
    body: Any = _joined([*declared, *(chain.guarded(number) for chain in chains)])
    for axis, extent in ((thread, THREADS), (block, blocks)):
        body = tirx.AttrStmt(axis, "thread_extent", tirx.IntImm("int32", extent), body)
    return func.with_body(body), blocks


class _Chain:
    """Nested loops around the computation of one result; the fastest index is the innermost loop's."""

    def __init__(self, statement: Any) -> None:
        self.loops: list[Any] = []
        while _kind(statement) == "For":
            self.loops.append(statement)
            statement = statement.body
        self.inner = statement
        self.dims = [int(loop.extent) for loop in self.loops]

    @property
    def threads(self) -> int:
        return prod(self.dims)

    def guarded(self, number: Any) -> Any:
        """The statements of the thread ``number``, if there is work for it."""
        binds = []
        stride = self.threads
        for loop, dim in zip(self.loops, self.dims, strict=True):
            stride //= dim
            index = tirx.floormod(tirx.floordiv(number, stride), dim) if stride > 1 else tirx.floormod(number, dim)
            binds.append(tirx.Bind(loop.loop_var, index))
        return tirx.IfThenElse(number < self.threads, _joined([*binds, *_sequence(self.inner)]), None)


def _sequence(statement: Any) -> Sequence[Any]:
    return list(statement.seq) if _kind(statement) == "SeqStmt" else [statement]


def _joined(statements: Sequence[Any]) -> Any:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def _kind(node: Any) -> str:
    return type(node).__name__


def _axis(name: str) -> Any:
    return tirx.IterVar(None, tirx.Var(name, "int32"), tirx.IterVar.ThreadIndex, name)

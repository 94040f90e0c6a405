"""The compiling half: an integer graph becomes ``program.json``.

    {"outputs": ["logits"],
     "constants": {"w": {"dtype": "int8", "shape": [16, 1, 3, 3], "values": [...]}},
     "steps": [{"op": "iconv2d", "result": "y", "dtype": "uint8", "operands": ["x", "w", "m", "c"],
                "zero_points": [0, 0, 0, 0], "attrs": {"shift": 32, ...}}]}

Steps are in the order in which they run, and ``attrs`` are those of the operation.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from qcc.ir.graph import Graph, Op, Value
from qcc.passmgr.context import PassContext
from qcc.passmgr.target import Capabilities, Target

OPS = frozenset(
    {"iconv2d", "idense", "ilinear", "ilookup", "ireduce_sum", "isum_pool2d", "max_pool2d", "reshape", "transpose"}
)


class ListingTarget(Target):
    """The integer graph as a JSON listing that a small numpy interpreter runs."""

    name: ClassVar[str] = "listing"
    backend: ClassVar[str] = "listing"

    indent: int | None = None
    """Spaces per level of the JSON; None: everything on one line."""

    @property
    def capabilities(self) -> Capabilities:
        """``OPS``, on activations of up to 16 bits."""
        return Capabilities(ops=OPS, activation_bits=frozenset({8, 16}))

    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        """Write ``program.json``; qcc has refused graphs with other operations than ``capabilities.ops``."""
        program = {
            "outputs": [v.name for v in graph.outputs],
            "constants": {o.result.name: _constant(o) for o in graph.ops if o.kind == "constant"},
            "steps": [_step(o) for o in graph.ops if o.kind != "constant"],
        }
        path = out / "program.json"
        path.write_text(json.dumps(program, indent=self.indent) + "\n", encoding="utf-8")
        return [path]


def _constant(o: Op) -> dict[str, Any]:
    return {"dtype": o.array.dtype.name, "shape": list(o.array.shape), "values": o.array.ravel().tolist()}


def _step(o: Op) -> dict[str, Any]:
    return {
        "op": o.kind,
        "result": o.result.name,
        "dtype": o.result.type.numpy.name,
        "operands": [v.name for v in o.operands],
        "zero_points": [_zero_point(v) for v in o.operands],
        "attrs": dict(o.attrs),
    }


def _zero_point(value: Value) -> int:
    return value.type.quant.zero_point if value.type.quant else 0

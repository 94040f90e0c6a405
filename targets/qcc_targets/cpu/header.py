"""The C header of compiled libraries: for hosts without Python."""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from typing import Final

from qcc.ir.graph import Graph, Value
from qcc.ir.types import BATCH
from qcc_targets.c.source import identifier

_BORDER: Final = """\
/* In the border library: codes of reals, exact where scale's multiplier has at most 24 bits. inverse is
   1 / scale; low and high are the lowest and highest code less the zero point. *nan becomes 1 if x holds NaN. */
void quantize_{type}(const float *x, {type}_t *codes, int64_t count, double inverse, double low, double high,
                     int32_t zero_point, int32_t *nan);
"""


_SHARE: Final = """\
/* The same inference by several threads, in libraries where that is worth it: each calls it with the same
   arguments, whenever it comes, and it returns when all is done. control is {control} zeroed bytes for one
   inference, at a multiple of 64 bytes;
   it must outlive every call that was given it, and nothing else is touched by a call that comes late. */
void qcc_share({declared}, const void *constants, void *arena, void *control);
"""


def write_header(graph: Graph, batch: int, quantized: Collection[str], control: int = 0) -> str:
    """``network.h`` for the libraries of ``graph``.

    ``quantized`` are types that the border library makes, ``control`` the bytes through which threads
    share a call; 0 where they cannot.
    """
    upper = identifier(graph.name).upper()
    values = [*(("in", v) for v in graph.inputs), *(("out", v) for v in graph.outputs)]
    declared = ", ".join(f"{'const ' if role == 'in' else ''}{_declared(role, v)}" for role, v in values)
    return "\n".join(
        [
            f"/* The integer network {graph.name}, compiled by qcc. Arrays are dense, in this order of axes:",
            *(f" *   {_described(role, v, batch)}" for role, v in values),
            " * The libraries call nothing but each other: no runtime, no allocation, no files. */",
            f"#ifndef QCC_{upper}_H",
            f"#define QCC_{upper}_H",
            "",
            "#include <stdint.h>",
            "",
            "/* Elements of each array; the codes, and what they stand for: real = SCALE * (code - ZERO). */",
            *(line for _, v in values for line in _numbers(v, batch, f"QCC_{upper}_{identifier(v.name).upper()}")),
            "",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "",
            "/* Stores the bytes of the file of constants, and of the memory that one call works in. */",
            "void qcc_sizes(int64_t *constants, int64_t *arena);",
            "",
            f"/* One inference of {batch} sample(s). constants and arena start at multiples of 64 bytes; the arena",
            "   belongs to one call at a time. On x86-64 with AMX, Linux must have been asked for its use. */",
            f"void qcc_network({declared}, const void *constants, void *arena);",
            "",
            *([_SHARE.format(control=control, declared=declared)] if control else []),
            *(_BORDER.format(type=t) for t in sorted(quantized)),
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "",
            f"#endif /* QCC_{upper}_H */",
            "",
        ]
    )


def _declared(role: str, value: Value) -> str:
    return f"{value.type.numpy.name}_t *{role}_{identifier(value.name)}"


def _described(role: str, value: Value, batch: int) -> str:
    shape = "x".join(str(batch if d == BATCH else d) for d in value.type.shape)
    return f"{role}_{identifier(value.name)}: {value.type.numpy.name}_t [{shape}]"


def _numbers(value: Value, batch: int, name: str) -> list[str]:
    size = prod(batch if d == BATCH else d for d in value.type.shape)
    quant = value.type.quant
    if quant is None:
        return [f"#define {name}_SIZE {size}"]
    fields = {
        "SIZE": size,
        "SCALE": repr(float(quant.scale[0])),
        "ZERO": quant.zero_point,
        "MIN": quant.qmin,
        "MAX": quant.qmax,
    }
    return [f"#define {name}_{field} {number}" for field, number in fields.items()]

"""The files of a standalone C99 network: one header, one source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qcc.ir.graph import Graph, Value
from qcc.ir.types import BATCH
from qcc_targets.c.emit import FunctionEmitter, helper_definitions, simplified
from qcc_targets.cpu.network import NETWORK, Network

_ELEMENT: Final = {
    "u8": "uint8_t",
    "i8": "int8_t",
    "u16": "uint16_t",
    "i16": "int16_t",
    "i32": "int32_t",
    "i64": "int64_t",
}

_BYTE_ORDER: Final = """\
#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "the constants of this network are little-endian"
#endif"""


@dataclass(frozen=True, slots=True)
class Sources:
    """Contents of ``network.h`` and ``network.c``."""

    header: str
    source: str


def identifier(name: str) -> str:
    """``name`` as a C identifier."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "network"
    return f"n_{plain}" if plain[0].isdigit() else plain


def write_sources(graph: Graph, network: Network, prefix: str) -> Sources:
    """The C99 program of ``network``, whose public names begin with ``prefix``. Raises TargetError."""
    helpers: set[str] = set()
    functions = [FunctionEmitter(helpers).emit(n, f) for n, f in simplified(network.functions).items()]
    functions.append(FunctionEmitter(helpers).emit(NETWORK, network.callers[NETWORK]))
    source = [
        f"/* The integer network {graph.name}: see {prefix}_run in network.h. */",
        '#include "network.h"',
        "#include <string.h>",
        _BYTE_ORDER,
        *helper_definitions(sorted(helpers)),
        _constants(network.constants),
        *functions,
        _entries(graph, prefix),
    ]
    return Sources(_header(graph, network, prefix), "\n\n".join(source) + "\n")


def parameters(graph: Graph) -> list[str]:
    """The declarations of inputs and outputs, in order."""
    ins = [f"const {_ELEMENT[v.type.dtype]} *{_parameter('in', v)}" for v in graph.inputs]
    return [*ins, *(f"{_ELEMENT[v.type.dtype]} *{_parameter('out', v)}" for v in graph.outputs)]


def _parameter(role: str, value: Value) -> str:
    return f"{role}_{identifier(value.name)}"


def _header(graph: Graph, network: Network, prefix: str) -> str:
    upper = prefix.upper()
    notes = [f" *   {_describe(v)}" for v in (*graph.inputs, *graph.outputs)]
    declared = ", ".join(parameters(graph))
    return "\n".join(
        [
            f"/* The integer network {graph.name}. Arrays are dense, in this order of axes:",
            *notes,
            " */",
            f"#ifndef {upper}_H",
            f"#define {upper}_H",
            "",
            "#include <stdint.h>",
            "",
            f"#define {upper}_ARENA_BYTES {network.arena}",
            f"#define {upper}_CONSTANT_BYTES {len(network.constants)}",
            "",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "",
            "/* One inference in a static arena: call it from one thread at a time. */",
            f"void {prefix}_run({declared});",
            "",
            f"/* One inference in the caller's memory of {upper}_ARENA_BYTES bytes: reentrant. */",
            f"void {prefix}_run_in({declared}, uint8_t *arena);",
            "",
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "",
            f"#endif /* {upper}_H */",
            "",
        ]
    )


def _describe(value: Value) -> str:
    shape = "x".join("1" if d == BATCH else str(d) for d in value.type.shape)
    quant = value.type.quant
    meaning = "" if quant is None else f", real = {float(quant.scale[0])!r} * (code - {quant.zero_point})"
    return f"{identifier(value.name)}: {_ELEMENT[value.type.dtype]} [{shape}]{meaning}"


def _constants(blob: bytes) -> str:
    rows = [", ".join(map(str, blob[i : i + 24])) for i in range(0, len(blob), 24)]
    return f"static const uint8_t qcc_constants[{len(blob)}] = {{\n    " + ",\n    ".join(rows) + "\n};"


def _entries(graph: Graph, prefix: str) -> str:
    declared = ", ".join(parameters(graph))
    ins = [f"(const uint8_t *){_parameter('in', v)}" for v in graph.inputs]
    outs = [f"(uint8_t *){_parameter('out', v)}" for v in graph.outputs]
    passed: Sequence[str] = [*ins, *outs, "qcc_constants", "arena"]
    names = [*(_parameter("in", v) for v in graph.inputs), *(_parameter("out", v) for v in graph.outputs)]
    return (
        f"void {prefix}_run_in({declared}, uint8_t *arena)\n{{\n    {NETWORK}({', '.join(passed)});\n}}\n\n"
        f"void {prefix}_run({declared})\n{{\n"
        f"    static uint8_t arena[{prefix.upper()}_ARENA_BYTES];\n"
        f"    {prefix}_run_in({', '.join(names)}, arena);\n}}"
    )

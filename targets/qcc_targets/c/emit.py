"""TensorIR functions as C99: integers only, nothing undefined, no library beyond <stdint.h> and <string.h>.

Memory is bytes. Elements wider than a byte are read and written with ``memcpy`` of fixed size,
which compilers turn into single loads and stores: no alignment is assumed, no aliasing rule bent.
Right shifts of negative numbers, left to the implementation by C99, go through helpers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import tvm
from tvm import s_tir, tirx

from qcc.errors import TargetError
from qcc_targets.cpu.isa import LEVELS

_C_TYPE: Final = {
    "bool": "int",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "uint16": "uint16_t",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "int64": "int64_t",
    "uint64": "uint64_t",
}
_BINARY: Final = {
    "Add": "+",
    "Sub": "-",
    "Mul": "*",
    "Div": "/",
    "Mod": "%",
    "BitwiseAnd": "&",
    "BitwiseOr": "|",
    "BitwiseXor": "^",
    "EQ": "==",
    "NE": "!=",
    "LT": "<",
    "LE": "<=",
    "GT": ">",
    "GE": ">=",
    "And": "&&",
    "Or": "||",
}
_WRITTEN: Final = re.compile(r"output\d*|scratch|arena")

SCALAR: Final = LEVELS["generic"]
"""The instruction set that kernels are built for: plain loops, in short blocks that any compiler may vectorize."""


def simplified(functions: dict[str, tirx.PrimFunc]) -> dict[str, tirx.PrimFunc]:
    """The functions with flat buffers, 32-bit indices and common subexpressions bound once."""
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    device = tvm.target.Target(SCALAR.target())
    passes = [
        tirx.transform.BindTarget(device.with_host(device)),
        s_tir.transform.StmtSimplify(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        tirx.transform.CommonSubexprElim(),
    ]
    lowered = tvm.ir.transform.Sequential(passes)(module)
    return {name: lowered[name] for name in functions}


@dataclass(slots=True)
class FunctionEmitter:
    """Writes one function; ``helpers`` collects the support functions that it calls."""

    helpers: set[str]
    _lines: list[str] = field(default_factory=list)
    _names: dict[Any, str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _arrays: set[str] = field(default_factory=set)
    _base: dict[str, tuple[str, int]] = field(default_factory=dict)

    def emit(self, name: str, func: tirx.PrimFunc) -> str:
        """``static void name(…)``; raises TargetError on TensorIR that has no C form here.

        Parameters are pointers to bytes, constant but for those called output…, scratch and arena.
        """
        parameters = [self._name(p) for p in func.params]
        self._statement(func.body, 1)
        body = "\n".join(self._lines)
        declared = ", ".join(f"{'' if _WRITTEN.fullmatch(p) else 'const '}uint8_t *{p}" for p in parameters)
        unused = [f"    (void){p};" for p in parameters if not re.search(rf"\b{p}\b", body)]
        return "\n".join([f"static void {name}({declared})", "{", *unused, body, "}"])

    def _name(self, var: Any) -> str:
        if var not in self._names:
            stem = re.sub(r"\W", "_", str(var.name)) or "v"
            name, number = stem, 1
            while name in self._taken:
                name, number = f"{stem}_{number}", number + 1
            self._taken.add(name)
            self._names[var] = name
        return self._names[var]

    def _line(self, depth: int, text: str) -> None:
        self._lines.append("    " * depth + text)

    def _statement(self, stmt: Any, depth: int) -> None:
        kind = type(stmt).__name__
        writer = getattr(self, f"_stmt_{kind}", None)
        if writer is None:
            raise TargetError(f"the c target has no form for the TensorIR statement {kind}")
        writer(stmt, depth)

    def _stmt_SeqStmt(self, stmt: Any, depth: int) -> None:  # noqa: N802 - named after TensorIR's nodes
        for part in stmt.seq:
            self._statement(part, depth)

    def _stmt_DeclBuffer(self, stmt: Any, depth: int) -> None:  # noqa: N802
        buffer = stmt.buffer
        pointer = self._names.get(stmt.data)
        if pointer is None:
            raise TargetError(f"buffer {buffer.name} lies in memory that is no parameter")
        self._base[self._name(buffer)] = (pointer, int(buffer.elem_offset))

    def _stmt_AllocBuffer(self, stmt: Any, depth: int) -> None:  # noqa: N802
        name = self._name(stmt.buffer)
        self._arrays.add(name)
        size = 1
        for extent in stmt.buffer.shape:
            size *= int(extent)
        self._line(depth, f"{_c_type(stmt.buffer.dtype)} {name}[{size}];")

    def _stmt_Bind(self, stmt: Any, depth: int) -> None:  # noqa: N802
        value = self._expr(stmt.value)
        self._line(depth, f"const {_c_type(_dtype(stmt.value))} {self._name(stmt.var)} = {value};")

    def _stmt_For(self, stmt: Any, depth: int) -> None:  # noqa: N802
        variable, start, extent = self._name(stmt.loop_var), self._expr(stmt.min), self._expr(stmt.extent)
        stop = extent if start == "0" else f"{start} + {extent}"
        kind = _c_type(_dtype(stmt.loop_var))
        self._line(depth, f"for ({kind} {variable} = {start}; {variable} < {stop}; ++{variable}) {{")
        self._statement(stmt.body, depth + 1)
        self._line(depth, "}")

    def _stmt_IfThenElse(self, stmt: Any, depth: int) -> None:  # noqa: N802
        self._line(depth, f"if ({self._expr(stmt.condition)}) {{")
        self._statement(stmt.then_case, depth + 1)
        if stmt.else_case is not None:
            self._line(depth, "} else {")
            self._statement(stmt.else_case, depth + 1)
        self._line(depth, "}")

    def _stmt_BufferStore(self, stmt: Any, depth: int) -> None:  # noqa: N802
        name, dtype = self._name(stmt.buffer), str(stmt.buffer.dtype)
        (index,) = map(self._expr, stmt.indices)
        value = self._expr(stmt.value)
        if name in self._arrays:
            self._line(depth, f"{name}[{index}] = {value};")
        elif dtype == "uint8":
            self._line(depth, f"{self._address(name, index)} = {value};")
        else:
            helper = self._helper(f"store_{dtype}")
            self._line(depth, f"{helper}({self._pointer(name, index, dtype)}, {value});")

    def _stmt_Evaluate(self, stmt: Any, depth: int) -> None:  # noqa: N802
        """A call of another function, on parameters and addresses within them."""
        call = stmt.value
        if type(call).__name__ != "Call" or call.op.name != "tirx.call_extern":
            raise TargetError(f"the c target has no form for the TensorIR statement {str(stmt)[:80]}")
        symbol, *arguments = call.args
        self._line(depth, f"{symbol.value}({', '.join(map(self._argument, arguments))});")

    def _argument(self, argument: Any) -> str:
        if type(argument).__name__ == "Call" and argument.op.name == "tirx.address_of":
            (load,) = argument.args
            (index,) = map(self._expr, load.indices)
            return self._pointer(self._name(load.source), index, "uint8")
        return self._expr(argument)

    def _address(self, name: str, index: str) -> str:
        pointer, offset = self._base[name]
        return f"{pointer}[{_plus(index, offset)}]"

    def _pointer(self, name: str, index: str, dtype: str) -> str:
        pointer, offset = self._base[name]
        size = int(re.sub(r"\D", "", dtype)) // 8
        at = _plus(index, offset)
        return f"{pointer} + {at}" if size == 1 else f"{pointer} + {size} * ({at})"

    def _helper(self, name: str) -> str:
        self.helpers.add(name)
        return f"qcc_{name}"

    def _expr(self, expr: Any) -> str:
        kind = type(expr).__name__
        if kind == "Var":
            return self._name(expr)
        if kind == "IntImm":
            return _literal(int(expr.value), _dtype(expr))
        if kind == "TensorLoad":
            return self._load(expr)
        if kind == "Cast":
            return f"({_c_type(_dtype(expr))})({self._expr(expr.value)})"
        if kind in ("Max", "Min"):
            return f"{self._helper(f'{kind.lower()}_{_dtype(expr)}')}({self._expr(expr.a)}, {self._expr(expr.b)})"
        if kind == "Not":
            return f"!({self._expr(expr.a)})"
        if kind == "Select":
            parts = (expr.condition, expr.true_value, expr.false_value)
            return "({} ? {} : {})".format(*map(self._expr, parts))
        if kind == "Call" and expr.op.name == "prim.if_then_else":
            return "({} ? {} : {})".format(*map(self._expr, expr.args))
        if kind == "RShift":
            return self._shift_right(expr)
        if kind == "LShift":
            return self._shift_left(expr)
        if kind in _BINARY:
            text = f"({self._expr(expr.a)} {_BINARY[kind]} {self._expr(expr.b)})"
            # C computes narrow integers as int; TensorIR wraps them to their own width.
            return f"({_c_type(_dtype(expr))}){text}" if _narrow(_dtype(expr)) else text
        raise TargetError(f"the c target has no form for the TensorIR expression {kind}: {str(expr)[:80]}")

    def _load(self, expr: Any) -> str:
        name, dtype = self._name(expr.source), str(expr.source.dtype)
        (index,) = map(self._expr, expr.indices)
        if name in self._arrays:
            return f"{name}[{index}]"
        if dtype == "uint8":
            return self._address(name, index)
        return f"{self._helper(f'load_{dtype}')}({self._pointer(name, index, dtype)})"

    def _shift_right(self, expr: Any) -> str:
        return f"{self._helper(f'shift_right_{_dtype(expr)}')}({self._expr(expr.a)}, {self._expr(expr.b)})"

    def _shift_left(self, expr: Any) -> str:
        """By way of the unsigned type: C99 leaves shifts of negative numbers undefined."""
        kind = _c_type(_dtype(expr))
        return f"({kind})((u{kind.removeprefix('u')})({self._expr(expr.a)}) << ({self._expr(expr.b)}))"


def _plus(index: str, offset: int) -> str:
    return index if not offset else f"{index} + {offset}" if offset > 0 else f"{index} - {-offset}"


def _dtype(expr: Any) -> str:
    return str(expr.ty.dtype) if hasattr(expr.ty, "dtype") else str(expr.dtype)


def _narrow(dtype: str) -> bool:
    return dtype in ("int8", "uint8", "int16", "uint16")


def _c_type(dtype: Any) -> str:
    if (found := _C_TYPE.get(str(dtype))) is None:
        raise TargetError(f"the c target computes with integers only; a kernel has {dtype}")
    return found


def _literal(value: int, dtype: str) -> str:
    if dtype in ("int64", "uint64") or not -(2**31) < value < 2**31:
        suffix = "ULL" if dtype == "uint64" else "LL"
        return f"(-{-value - 1}{suffix} - 1)" if value == -(2**63) else f"{value}{suffix}"
    return f"{value}U" if dtype == "uint32" else str(value)


def helper_definitions(names: Sequence[str]) -> Iterator[str]:
    """The support functions called ``names`` (such as ``load_int32``), one definition each, in order."""
    for name in names:
        action, _, dtype = name.rpartition("_")
        kind = _c_type(dtype)
        if action == "load":
            yield _function(
                kind, name, "const uint8_t *p", f"{kind} value;", "memcpy(&value, p, sizeof value);", "return value;"
            )
        elif action == "store":
            yield _function("void", name, f"uint8_t *p, {kind} value", "memcpy(p, &value, sizeof value);")
        elif action == "shift_right":
            shifted = "a >> n" if dtype.startswith("u") else "a >= 0 ? a >> n : ~(~a >> n)"
            yield _function(kind, name, f"{kind} a, {kind} n", f"return ({kind})({shifted});")
        else:
            test = {"max": "a > b", "min": "a < b"}[action]
            yield _function(kind, name, f"{kind} a, {kind} b", f"return {test} ? a : b;")


def _function(result: str, name: str, declared: str, *lines: str) -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return f"static inline {result} qcc_{name}({declared})\n{{\n{body}}}"

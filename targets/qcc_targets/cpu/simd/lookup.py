"""Tables of 256 bytes in registers: AVX-512 VBMI looks up 64 codes with two permutations, AArch64 16 with four."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from qcc_targets.cpu.generic.nest import Nest, loops, nest, overlays
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, pack, primitive
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.emit import Expr, Memory


def build(site: Site, isa: Isa) -> Kernel | None:
    """The kernel of an ``ilookup`` of bytes in one table, or None where it is another, or rows are short."""
    x, y, table = site.view(0), site.output, site.array(1)
    if not {"vbmi", "neon"} & isa.features or table.shape != (256,) or {x.itemsize, y.itemsize} != {1}:
        return None
    plan = nest(y.shape, [x.strides, y.strides])
    if plan.dims[-1] < isa.vector_bits // 8 or any(walk[-1] != 1 for walk in plan.strides):
        return None
    codes = table.view(np.uint8)
    if x.dtype == "i8":
        codes = np.roll(codes, 128)  # by the bits of a code, not by its number
    return _Template(site, isa, plan, codes).build()


@dataclass(frozen=True, slots=True)
class _Template:
    site: Site
    isa: Isa
    plan: Nest
    table: NDArray[np.uint8]

    @property
    def lanes(self) -> int:
        return self.isa.vector_bits // 8

    def build(self) -> Kernel:
        site, plan, lanes = self.site, self.plan, self.lanes
        x, y = site.view(0), site.output

        def body(pointers: Pointers) -> None:
            source = emit.memory(pointers.inputs[0], "uint8", x.alignment)
            target = emit.memory(pointers.output, "uint8", y.alignment)
            codes = emit.memory(pointers.constants, "uint8")
            table = [emit.load(codes, at, lanes) for at in range(0, 256, lanes)]
            whole, rest = divmod(plan.dims[-1], lanes)

            def row(outer: tuple[Expr, ...]) -> None:
                at, to = (emit.bind(plan.at(i, v.offset, (*outer, 0))) for i, v in enumerate((x, y)))
                with emit.loop(whole) as block:
                    found = self._vector(table, emit.load(source, at + block * lanes, lanes))
                    emit.store(target, to + block * lanes, found, lanes)
                if rest:
                    with emit.loop(rest) as number:
                        self._one(codes, source, target, at + whole * lanes + number, to + whole * lanes + number)

            loops(plan.dims[:-1], row)

        inplace = (0,) if overlays(x, y) else ()
        func = primitive(site.inputs, y, body, noalias=not inplace, plain=True)
        return Kernel(f"lookup.{self.isa.name}", func, pack(self.table)[0], 0, inplace)

    def _one(self, codes: Memory, source: Memory, target: Memory, at: Expr, to: Expr) -> None:
        code = emit.bind(emit.cast("int32", emit.scalar(source, at)))
        emit.store(target, to, emit.scalar(codes, code), 1)

    def _vector(self, table: list[Expr], codes: Expr) -> Expr:
        if "neon" in self.isa:
            return self._sixteen(table, codes)
        name = "x86.avx512.vpermi2var.qi.512"  # takes seven bits of every code
        low, high = (emit.pure("uint8x64", name, a, codes, b) for a, b in (table[:2], table[2:]))
        return emit.bind(tirx.Select(codes < emit.splat("uint8", 128, 64), low, high))

    def _sixteen(self, table: list[Expr], codes: Expr) -> Expr:
        """``tbl`` gives 0 for codes beyond its 64 bytes, ``tbx`` leaves what is there."""
        found = emit.pure("uint8x16", "aarch64.neon.tbl4", *table[:4], codes)
        for part in range(4, 16, 4):
            beyond = emit.bind(codes - emit.splat("uint8", 16 * part, 16))
            found = emit.pure("uint8x16", "aarch64.neon.tbx4", found, *table[part : part + 4], beyond)
        return found

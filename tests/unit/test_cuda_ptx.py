"""The inline assembly of ``ptx.cuh``, executed from its text by the fragment layouts of the PTX ISA."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]
LANES: Final = 32

TEXT: Final = (resources.files("qcc_targets.cuda") / "device" / "ptx.cuh").read_text(encoding="utf-8")
NEWER, OLDER = TEXT[TEXT.index("#if __CUDA_ARCH__ >= 800") :].split("#else", 1)
MMA: Final = re.compile(
    r'mma\.sync\.aligned\.(m\d+n8k\d+)\.row\.col\.s32\." TYPE "\.s8\.s32 '
    r"\{([%\d,]+)\}, \{([%\d,]+)\}, \{([%\d,]+)\}, \{([%\d,]+)\};"
)

Layout = Callable[[int, int], tuple[int, int]]
"""The row and column of element ``i`` that lane ``lane`` holds."""


def layouts(shape: str) -> tuple[tuple[int, int, int], Layout, Layout, Layout]:
    """Extents, and the layouts of A, B and C: sections "Matrix fragments for mma.m8n8k16" and "…mma.m16n8k32"."""
    if shape == "m8n8k16":
        return (
            (8, 8, 16),
            lambda lane, i: (lane >> 2, lane % 4 * 4 + i),
            lambda lane, i: (lane % 4 * 4 + i, lane >> 2),
            lambda lane, i: (lane >> 2, lane % 4 * 2 + i),
        )
    assert shape == "m16n8k32"
    return (
        (16, 8, 32),
        lambda lane, i: (
            (lane >> 2) + (0 if i < 4 or 8 <= i < 12 else 8),
            lane % 4 * 4 + (i & 3) + (16 if i >= 8 else 0),
        ),
        lambda lane, i: (lane % 4 * 4 + (i & 3) + (16 if i >= 4 else 0), lane >> 2),
        lambda lane, i: ((lane >> 2) + (0 if i < 2 else 8), lane % 4 * 2 + (i & 1)),
    )


def numbers(text: str) -> list[int]:
    return [int(part.removeprefix("%")) for part in text.split(",")]


def gathered(registers: Array, layout: Layout, extents: tuple[int, int], kind: Any) -> Array:
    """The matrix that the lanes' ``registers`` [lanes, registers] hold as elements of type ``kind``."""
    elements = np.ascontiguousarray(registers).view(kind)
    matrix = np.zeros(extents, np.int64)
    for lane in range(LANES):
        for i in range(elements.shape[1]):
            matrix[layout(lane, i)] = elements[lane, i]
    return matrix


def execute(assembly: str, registers: Array, kind: Any) -> Array:
    """All ``mma`` of ``assembly`` in turn, on registers uint32 [lanes, operands]."""
    registers = registers.copy()
    found = MMA.findall(re.sub(r'"\s*\\\n\s*"', "", assembly))  # adjacent literals are one
    assert found
    for shape, d, a, b, c in found:
        (m, n, k), of_a, of_b, of_c = layouts(shape)
        left = gathered(registers[:, numbers(a)], of_a, (m, k), kind)
        right = gathered(registers[:, numbers(b)], of_b, (k, n), np.int8)
        total = (left @ right + gathered(registers[:, numbers(c)], of_c, (m, n), np.int32)).astype(np.int32)
        for lane in range(LANES):
            for i, number in enumerate(numbers(d)):
                registers[lane, number] = total[of_c(lane, i)].astype(np.int32).view(np.uint32)
    return registers


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_turing_multiplies_by_quarters_what_later_ones_multiply_at_once(kind: Any) -> None:
    registers = np.random.default_rng(0).integers(0, 1 << 32, (LANES, 10), np.uint32)
    (m, n, k), of_a, of_b, of_c = layouts("m16n8k32")
    left = gathered(registers[:, 4:8], of_a, (m, k), kind)
    right = gathered(registers[:, 8:10], of_b, (k, n), np.int8)
    total = (left @ right + gathered(registers[:, :4], of_c, (m, n), np.int32)).astype(np.int32)
    for assembly, count in ((NEWER, 1), (OLDER, 4)):
        assert assembly.count("mma.sync") == count
        after = execute(assembly, registers, kind)
        assert (gathered(after[:, :4], of_c, (m, n), np.int32) == total).all()
        assert (after[:, 4:] == registers[:, 4:]).all()

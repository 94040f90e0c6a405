"""Tables in registers against the reference, per instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc_targets.cpu.isa import LEVELS, available
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.select import select
from qcc_targets.cpu.simd.trial import judge


def tables() -> Graph:
    """Codes of both signs, rows longer and shorter than a vector, one table after another in place."""
    b, rng = GraphBuilder("tables", Stage.INTEGER), np.random.default_rng(2)
    unsigned, signed = (Quant(8, s, (Dyadic.of(0.05),), 0) for s in (False, True))
    outputs = []
    for number, shape in enumerate(((3, 7, 11), (200,), (40, 90), (64, 2), (5,))):
        x = b.input(f"x{number}", (BATCH, *shape), ("u8", "i8")[number % 2], (unsigned, signed)[number % 2])
        if number == 2:
            x = b.op("slice", [x], axis=2, start=1, stop=72, step=1, quant=unsigned)
        for quant, dtype in ((signed, np.int8), (unsigned, np.uint8), (unsigned, np.uint8)):
            info = np.iinfo(dtype)
            codes = b.constant(rng.integers(info.min, info.max + 1, 256).astype(dtype), "t")
            x = b.op("ilookup", [x, codes], quant=quant)
            outputs.append(x)
    return b.graph(outputs[2::3])


def test_kernels_compute_what_the_reference_does() -> None:
    if "avx512vbmi" not in {level.name for level in available()}:
        pytest.skip("this processor has no avx512vbmi")
    verdicts = [v for v in judge(tables(), LEVELS["avx512vbmi"], batch=3) if v.op == "ilookup"]
    assert len(verdicts) == 4 * 3  # five codes are less than a vector
    assert [v for v in verdicts if v.differing] == []


def test_they_may_write_where_they_read() -> None:
    sites = [step.site for step in lower(tables()).steps if step.site.op.kind == "ilookup"]
    kernels = [select(site, LEVELS["avx512vbmi"]) for site in sites]
    assert {k.name for k in kernels} == {"lookup.avx512vbmi", "lookup.generic"}
    assert any(k.inplace for k in kernels if k.name == "lookup.avx512vbmi")

"""Random networks with their channels in random orders: no element may differ, in any execution.

    python tests/bench/channels_exact.py [--count 10000] [--compiled 500] [--seed 0] [--out exact.jsonl]

Each case is a network of ``channel_networks`` as integers, in its own order and in a random one: the numpy reference
on the first, against the reference and onnxruntime on the second, and for ``--compiled`` of the cases the library that
the target cpu builds of the second. Cases come in parts; with ``--out`` a line per part is kept, and an interrupted run
goes on behind it. Exits with 8 where an element differs.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from channel_networks import codes_for, integer_pair, networks
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph
from qcc.verify.interp import evaluate
from qcc.verify.ort import OrtModel
from qcc_passes.channel_groups import channel_groups
from qcc_targets.cpu.compiler import Compiler
from qcc_targets.cpu.trial import compile_and_run

PART: Final = 100
"""Cases of a part."""
ENGINES: Final = ("numpy", "onnxruntime", "cpu")
COMPILER: Final = Compiler()


def part(number: int, first_seed: int, compiled: int) -> dict[str, int]:
    """Counts of cases, elements and differing elements of part ``number``; ``compiled`` of its cases are compiled."""
    found = {"cases": 0} | {f"{engine} {what}": 0 for engine in ENGINES for what in ("cases", "elements", "differ")}

    def judge(engine: str, wanted: dict[str, NDArray[Any]], got: dict[str, NDArray[Any]]) -> None:
        found[f"{engine} cases"] += 1
        for name, array in wanted.items():
            found[f"{engine} elements"] += array.size
            found[f"{engine} differ"] += int(np.count_nonzero(np.asarray(got[name]) != array))

    @seed(first_seed + number)
    @settings(
        max_examples=PART,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(networks(tables=True), st.integers(0, 2**32 - 1))
    def case(graph: Graph, number_: int) -> None:
        assume(channel_groups(graph).free)
        plain, moved = integer_pair(graph, number_)
        codes = codes_for(plain, number_ + 1)
        wanted = evaluate(plain, codes)
        judge("numpy", wanted, evaluate(moved, codes))
        judge("onnxruntime", wanted, dict(OrtModel(export_onnx(moved)).run(codes)))
        if found["cases"] < compiled:
            judge("cpu", wanted, compile_and_run(moved, codes, batch=2, compiler=COMPILER))
        found["cases"] += 1

    case()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--compiled", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    parts = -(-chosen.count // PART)
    rows: list[dict[str, int]] = []
    if chosen.out and chosen.out.exists():
        rows = [json.loads(line) for line in chosen.out.read_text().splitlines()]
    start = time.monotonic()
    for number in range(len(rows), parts):
        each = (number + 1) * chosen.compiled // parts - number * chosen.compiled // parts
        rows.append(part(number, chosen.seed, each))
        if chosen.out:
            with chosen.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        print(f"part {number + 1} of {parts}, {time.monotonic() - start:.0f} s: {rows[-1]}", flush=True)
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    for engine in ENGINES:
        cases, elements, differ = (total[f"{engine} {what}"] for what in ("cases", "elements", "differ"))
        print(f"{engine:12} {cases:6} networks {elements:9} elements {differ:6} differ")
    if any(total[f"{engine} differ"] for engine in ENGINES):
        sys.exit(8)


if __name__ == "__main__":
    main()

"""The tables of ``qcc bench --profile``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcc.commands.console import out, print_json, print_table

if TYPE_CHECKING:
    from qcc.runtime.tvm_profile import Profile

COLUMNS = ("operation", "result", "kernel", "inside µs", "hot µs", "share %", "GOPS", "roofline %")
TEXTS = 3
"""Columns of text; the others hold numbers."""


def show_profile(artifact: Path, isa: str | None, rounds: int, *, as_json: bool) -> None:
    """Profile an artifact and print every step. Raises ArtifactError."""
    from qcc.artifact.store import read_artifact
    from qcc.runtime.tvm_profile import profile

    found = profile(read_artifact(artifact), isa=isa, rounds=rounds)
    if as_json:
        print_json(_plain(found))
        return
    limits = [f"bandwidth {found.bandwidth / 1e9:.0f} GB/s"]
    if found.peak:
        limits.insert(0, f"peak {found.peak / 1e9:.0f} GOPS")
    title = f"{found.isa}: {', '.join(limits)}, measured between the rounds"
    print_table(title, COLUMNS, _rows(found), numbers=TEXTS)
    out().print(
        f"network {1e6 * found.inside:.1f} µs, steps hot {1e6 * found.hot:.1f} µs: "
        f"{100 * found.hot / found.inside:.0f} % of the network's time",
        markup=False,
    )


def _rows(found: Profile) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for s in found.steps:
        share = found.roofline(s)
        rows.append(
            (
                s.op,
                s.result,
                s.kernel.partition("[")[0],
                f"{1e6 * s.inside:.2f}",
                f"{1e6 * s.hot:.2f}",
                f"{100 * s.inside / found.inside:.1f}",
                f"{s.gops:.0f}" if s.operations else "",
                "" if share is None else f"{100 * share:.0f}",
            )
        )
    return rows


def _plain(found: Profile) -> dict[str, Any]:
    steps = [asdict(s) | {"gops": s.gops, "roofline": found.roofline(s)} for s in found.steps]
    return {
        "isa": found.isa,
        "peak_operations_per_second": found.peak or None,
        "bandwidth_bytes_per_second": found.bandwidth,
        "seconds": {"network": found.inside, "steps_hot": found.hot},
        "steps": steps,
    }

"""What a written network takes of a device, module by module: stages one at a time, then all that joins them.

The sum is what synthesis of the whole network gives without optimization across modules. Counts are kept in a
folder under the hash of what was synthesized: nothing is done twice, and an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from qcc_targets.fpga.device import Device
from qcc_targets.fpga.synth import Usage, count, synthesize

JOINED: Final = "joined"
"""The part that holds queues, gears, forks and the top module."""

_STAGE: Final = re.compile(r"^module (stage\d+)\b.*?^endmodule\n", re.MULTILINE | re.DOTALL)


def count_parts(device: Device, files: Mapping[str, bytes], top: str, kept: Path) -> Iterator[tuple[str, Usage]]:
    """The module of each stage with what it takes, and ``JOINED`` with the rest.

    ``files`` are those that the target writes, ``kept`` is a folder. Raises TargetError.
    """
    sources = {name: data.decode() for name, data in files.items() if name.endswith(".sv")}
    memories = {name: data.decode() for name, data in files.items() if name.endswith(".mem")}
    stages = {m[1]: m[0] for text in sources.values() for m in _STAGE.finditer(text)}
    shared = {name: text for name, text in sources.items() if not _STAGE.search(text) and top not in text}
    for stage, text in stages.items():
        own = {name: data for name, data in memories.items() if name.startswith(f"{stage}_")}
        yield stage, _kept(device, {**shared, **own, "stage.sv": text}, stage, (), kept)
    yield JOINED, _kept(device, {**sources, **memories}, top, tuple(stages), kept)


def _kept(device: Device, texts: Mapping[str, str], top: str, without: Sequence[str], kept: Path) -> Usage:
    what = json.dumps([device.synthesis, sorted(texts.items()), top])
    path = kept / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.json"
    if path.is_file():
        return count(json.loads(path.read_text()))
    with tempfile.TemporaryDirectory(prefix="qcc-synthesis-") as scratch:
        folder = Path(scratch)
        for name, text in texts.items():
            (folder / name).write_text(text)
        usage = synthesize(device, sorted(folder.glob("*.sv")), top, folder, without=without)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(dict(usage.cells)))
    fresh.replace(path)
    return usage

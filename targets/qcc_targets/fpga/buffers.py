"""How deep the queues behind a fork must be, so that branches of different delay meet again without a deadlock.

Where two branches of a fork join, output pixel p waits for pixel ``ahead[p]`` of the fork through one of them;
the other has then taken no more than what its pixel p - 1 needed, and must hold the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc_targets.fpga.stages import Concat, Dataflow, Reduce, Stage, Windowed

Array = NDArray[Any]
Branches = dict[int, Array]
"""By branch of a fork, the last pixel of the fork that each pixel of a stream needs."""


def last_reads(stage: Stage, slot: int) -> Array:
    """For each output pixel of ``stage``, the last pixel of input ``slot`` that it needs; -1 for none yet."""
    y, x = stage.output, stage.inputs[slot]
    if isinstance(stage, Reduce):
        return np.array([x.pixels - 1])
    if isinstance(stage, Windowed) and slot == 0:
        w = stage.window
        (top, left, _, _), (sh, sw), (kh, kw), (dh, dw) = w.pads, w.strides, w.kernel, w.dilations
        rows = np.clip(np.arange(y.height) * sh - top + (kh - 1) * dh, 0, x.height - 1)
        columns = np.clip(np.arange(y.width) * sw - left + (kw - 1) * dw, 0, x.width - 1)
        # The buffer is read in order, so that what a window needs no earlier one does without.
        return np.maximum.accumulate((rows[:, None] * x.width + columns[None, :]).reshape(-1))
    if isinstance(stage, Concat):
        return _concatenated(stage, slot)
    return np.arange(y.pixels)


def _concatenated(stage: Concat, slot: int) -> Array:
    """Elements arrive in runs; a pixel needs all that come before its own last one."""
    runs = [np.where(i == slot, np.arange(r) + 1, 0) for i, r in enumerate(stage.runs)]
    one = np.maximum.accumulate(np.concatenate([r if i == slot else r * 0 for i, r in enumerate(runs)]))
    taken = (np.arange(stage.outer)[:, None] * stage.runs[slot] + one[None, :]).reshape(-1)
    ends = taken.reshape(stage.output.pixels, -1)[:, -1]
    return -(-ends // stage.inputs[slot].channels) - 1


def fork_pixels(network: Dataflow, name: str) -> dict[tuple[int, int], int]:
    """For the stream ``name``, by reader (stage number, slot), the pixels that its branch of the fork must hold."""
    readers = network.readers()[name]
    depths = dict.fromkeys(readers, 1)
    needs: dict[str, Branches] = {}
    stages_behind: dict[str, int] = {name: 0}
    for number, stage in enumerate(network.stages):
        slots: list[Branches] = []
        for slot, x in enumerate(stage.inputs):
            reads = last_reads(stage, slot)
            if x.name == name:
                slots.append({readers.index((number, slot)): reads})
            else:
                slots.append({b: _through(n, reads) for b, n in needs.get(x.name, {}).items()})
        found = [s for s in slots if s]
        if not found:
            continue
        stages_behind[stage.name] = 1 + max(stages_behind.get(x.name, 0) for x in stage.inputs)
        margin = stages_behind[stage.name] + 1
        for here in found:
            for there in found:
                if here is there:
                    continue
                for branch, own in here.items():
                    for other, ahead in there.items():
                        if branch != other:
                            before = np.concatenate([[-1], own[:-1]])
                            lag = int((ahead - before).max()) + margin
                            depths[readers[branch]] = max(depths[readers[branch]], lag)
        joined: Branches = {}
        for here in found:
            for branch, needed in here.items():
                joined[branch] = np.maximum(joined[branch], needed) if branch in joined else needed
        # Where all branches have met, they are one stream again.
        if len(joined) < len(readers):
            needs[stage.name] = joined
    return depths


def _through(needed: Array, reads: Array) -> Array:
    """What is needed of the fork for the pixels ``reads`` of a stream that needs ``needed``."""
    return np.where(reads < 0, -1, needed[np.maximum(reads, 0)])

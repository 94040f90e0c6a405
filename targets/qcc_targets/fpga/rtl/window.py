"""Line buffers: how much of a stream a window needs at once, and the counters that tell when it is there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcc_targets.fpga.stages import Windowed


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a window's walk: where it starts, its step and reach, and the last place there is, in words."""

    first: int
    step: int
    span: int
    last: int
    count: int

    def starts(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The first word that each position reads."""
        return np.clip(self.first + self.step * np.arange(self.count), 0, self.last)

    def ends(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.clip(self.first + self.step * np.arange(self.count) + self.span, 0, self.last)


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """A line buffer of 2**address words, ``pixel`` of which make up a pixel and ``frame`` a frame.

    ``early`` output rows at the top share their first input row with the next one, which thus needs all of it.
    """

    rows: Axis
    columns: Axis
    pixel: int
    frame: int
    early: int
    address: int

    @property
    def pointer(self) -> int:
        """Bits of pointers into the endless stream, whose differences must not wrap."""
        return (self.frame + (1 << self.address)).bit_length() + 2

    def instance(self, width: int) -> str:
        """The line buffer over ``x0``, with words of ``width`` bits."""
        parameters = {
            "WIDTH": width,
            "ADDRESS": self.address,
            "POINTER": self.pointer,
            "FRAME": self.frame,
            "PIXEL": self.pixel,
            "EARLY": self.early,
        }
        for name, axis in (("ROW", self.rows), ("COL", self.columns)):
            parts = {"FIRST": axis.first, "STEP": axis.step, "SPAN": axis.span, "LAST": axis.last, "COUNT": axis.count}
            parameters |= {f"{name}_{part}": value for part, value in parts.items()}
        given = ", ".join(f".{name}({value})" for name, value in parameters.items())
        connected = (
            ".clk(clk), .rst(rst), .x_data(x0_data), .x_valid(x0_valid), .x_ready(x0_ready), "
            ".ready(window_ready), .done(window_done), .en(en), .address(window_at), .data(window_word)"
        )
        return f"qcc_window #({given}) window ({connected});"


def plan_window(stage: Windowed, lanes: int) -> WindowPlan:
    """The line buffer of ``stage``: the least power of two of words with which it never has to wait for room."""
    x, y, w = stage.x, stage.output, stage.window
    pixel = x.channels // lanes
    row = pixel * x.width
    (top, left, _, _), (sh, sw), (kh, kw), (dh, dw) = w.pads, w.strides, w.kernel, w.dilations
    rows = Axis(-top * row, sh * row, (kh - 1) * dh * row, (x.height - 1) * row, y.height)
    columns = Axis(-left * pixel, sw * pixel, (kw - 1) * dw * pixel, (x.width - 1) * pixel, y.width)
    early = sum(1 for i in range(y.height) if (i + 1) * sh - top <= 0)
    base = rows.starts()[:, None] + np.where(np.arange(y.height)[:, None] < early, 0, columns.starts()[None, :])
    end = rows.ends()[:, None] + columns.ends()[None, :] + pixel
    # While a row of outputs is computed, the rows that the next one moves on by come in.
    need = int((end - base).max()) + (sh - 1) * row + 2 * sw * pixel + 2
    return WindowPlan(rows, columns, pixel, x.pixels * pixel, early, max(1, (need - 1).bit_length()))

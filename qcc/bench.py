"""Timing an artifact beside onnxruntime: fp32, and int8 as onnxruntime itself quantizes."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from qcc.errors import ModelError
from qcc.passmgr.context import Progress
from qcc.verify.ort import OrtModel

Arrays = Mapping[str, NDArray[Any]]
BLOCK_SECONDS: Final = 0.02
"""How long one engine runs before the next one has its turn: long against the clock, short against drift."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call over the rounds; the quartiles are those of the rounds."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    best: float


def measure(
    engines: Mapping[str, Callable[[], object]], rounds: int, progress: Progress | None = None
) -> dict[str, Timing]:
    """Time every engine in every round, in turns that start elsewhere each round, so that drift hits all alike."""
    calls = {name: _calls_per_block(engine) for name, engine in engines.items()}
    samples: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for r in range(rounds):
        shift = r % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(_block(engines[name], calls[name]))
        if progress is not None:
            progress("bench", r + 1, rounds)
    return {name: _timing(seconds) for name, seconds in samples.items()}


def _calls_per_block(engine: Callable[[], object]) -> int:
    """Calls that fill a block, after a first one that warms up."""
    engine()
    return max(1, int(BLOCK_SECONDS / max(_block(engine, 1), 1e-7)))


def _block(engine: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        engine()
    return (time.perf_counter() - start) / calls


def _timing(seconds: Sequence[float]) -> Timing:
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (seconds[0],) * 3
    return Timing(median, low, high, min(seconds))


@contextmanager
def quantized_by_onnxruntime(model: Path, samples: Sequence[Arrays], threads: int) -> Iterator[OrtModel]:
    """``model`` as onnxruntime quantizes it: per-channel QDQ, min-max ranges on ``samples``.

    Raises ModelError where it cannot.
    """
    log = logging.getLogger()
    level = log.level
    with tempfile.TemporaryDirectory(prefix="qcc-bench-") as scratch:
        prepared, quantized = Path(scratch) / "prepared.onnx", Path(scratch) / "int8.onnx"
        try:
            log.setLevel(logging.ERROR)  # its advice on pre-processing is not ours to pass on
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(quantized),
                _Reader(samples),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as e:  # onnxruntime's quantizer raises whatever comes
            raise ModelError(f"{model}: onnxruntime cannot quantize it: {type(e).__name__}: {e}") from e
        finally:
            log.setLevel(level)
        yield OrtModel(onnx.load(quantized), threads=threads)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: Sequence[Arrays]) -> None:
        self._left = list(samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return dict(self._left.pop(0)) if self._left else None

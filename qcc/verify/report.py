"""One verification: the fp32 model against the integer graph, and the integer graph's executions against each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import ConfigError, MismatchError, VerifyError
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH
from qcc.passmgr.context import Progress
from qcc.verify import compare
from qcc.verify.interp import evaluate
from qcc.verify.layers import LayerRow, LayerTable

Array = NDArray[Any]

Runner = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Takes codes by input name, returns codes by output name."""


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output, dequantized, against fp32; agreement and top-1 where its last axis has classes.

    ``sqnr_db`` is infinite for equal tensors; ``kl`` is in nats, the outputs being taken as logits.
    """

    name: str
    sqnr_db: float
    cosine: float
    agreement: float | None
    kl: float | None
    top1_fp32: float | None
    top1_integer: float | None


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One execution of the integer graph against the reference: elements that differ, of all compared."""

    name: str
    elements: int
    differing: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    samples: int
    outputs: tuple[OutputRow, ...]
    engines: tuple[EngineRow, ...]
    layers: tuple[LayerRow, ...]

    @property
    def exact(self) -> bool:
        """Whether every execution agreed with the reference on every bit."""
        return all(e.differing == 0 for e in self.engines)

    def check(self) -> None:
        """Raise MismatchError naming the executions that differ from the reference."""
        if not self.exact:
            bad = (f"{e.name} in {e.differing} of {e.elements} elements" for e in self.engines if e.differing)
            raise MismatchError(f"executions differ from the reference: {', '.join(bad)}")

    def blamed(self, count: int) -> tuple[LayerRow, ...]:
        """The ``count`` layers that lose most, worst first."""
        known = [r for r in self.layers if r.loss_db is not None]
        return tuple(sorted(known, key=lambda r: -(r.loss_db or 0.0))[:count])

    def to_json(self) -> str:
        """Indented JSON; an infinite or undefined number is null."""
        return json.dumps(_finite(asdict(self)), indent=2) + "\n"


def verify_model(
    fp32: Runner,
    graph: Graph,
    inputs: Mapping[str, Array],
    *,
    engines: Mapping[str, Runner] | None = None,
    codes: Mapping[str, Array] | None = None,
    labels: Array | None = None,
    real: Graph | None = None,
    layer_samples: int = 64,
    batch: int = 32,
    progress: Progress | None = None,
) -> VerifyReport:
    """Run everything on ``inputs`` and compare.

    ``fp32`` runs the original model on ``inputs`` (reals, first axis = sample), for example
    ``OrtModel(path).run``. ``graph`` is at stage INTEGER; its codes are ``codes``, or ``inputs``
    quantized at the border. ``engines`` are further executions of it, such as onnxruntime on the
    exported graph or the artifact. ``real`` (stage FLOAT or QUANTIZED, values named like those of
    ``graph``) gives the table of layers, measured on ``layer_samples`` samples; without it there is
    none. ``labels`` [samples] are the classes of the first output.

    Raises ConfigError when the data do not fit; differences are reported, not raised.
    """
    if graph.stage is not Stage.INTEGER:
        raise VerifyError(f"graph @{graph.name} is at stage {graph.stage}; verification takes stage {Stage.INTEGER}")
    coded = quantize_inputs(graph, inputs) if codes is None else codes
    step, samples = _step(graph, coded, batch)
    if labels is not None and len(labels) != samples:
        raise ConfigError(f"{len(labels)} labels do not fit {samples} samples")
    run = _Run(fp32, graph, engines or {}, LayerTable(graph, real) if real is not None else None)
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        reals, some = ({k: a[start:stop] for k, a in arrays.items()} for arrays in (inputs, coded))
        run.step(reals, some)
        if start < layer_samples and run.table is not None:
            # Codes given apart from the reals are another border, such as camera bytes: only they fit the graphs.
            run.table.add(reals if codes is None else {}, some)
        if progress is not None:
            progress("verify", stop, samples)
    return run.report(samples, labels)


class _Run:
    """Collects outputs and counts while parts of the data pass through."""

    def __init__(self, fp32: Runner, graph: Graph, engines: Mapping[str, Runner], table: LayerTable | None) -> None:
        self._fp32 = fp32
        self._graph = graph
        self._engines = engines
        self.table = table
        self._differing = dict.fromkeys(engines, 0)
        self._elements = 0
        self._pairs: dict[str, list[tuple[Array, Array]]] = {v.name: [] for v in graph.outputs}

    def step(self, reals: Mapping[str, Array], codes: Mapping[str, Array]) -> None:
        wanted = self._fp32(reals)
        reference = evaluate(self._graph, codes)
        self._elements += sum(a.size for a in reference.values())
        for name, engine in self._engines.items():
            self._differing[name] += differing(reference, engine(codes))
        for v in self._graph.outputs:
            if v.name not in wanted:
                raise ConfigError(f"the fp32 model has no output '{v.name}'; outputs: {', '.join(wanted)}")
            self._pairs[v.name].append((wanted[v.name], dequantize(v, reference[v.name])))

    def report(self, samples: int, labels: Array | None) -> VerifyReport:
        outputs = []
        for index, (name, pairs) in enumerate(self._pairs.items()):
            wanted, got = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
            outputs.append(output_row(name, wanted, got, labels if index == 0 else None))
        engines = [EngineRow(name, self._elements, count) for name, count in self._differing.items()]
        rows = self.table.rows() if self.table is not None else ()
        return VerifyReport(samples, tuple(outputs), tuple(engines), rows)


def output_row(name: str, fp32: Array, integer: Array, labels: Array | None = None) -> OutputRow:
    """Metrics of one output; a tensor of indices (argmax) is compared by the share of equal elements."""
    if integer.dtype.kind != "f":
        equal = float(np.mean(fp32 == integer))
        return OutputRow(name, compare.sqnr_db(fp32, integer), compare.cosine(fp32, integer), equal, None, None, None)
    classes = fp32.ndim > 1 and fp32.shape[-1] > 1
    return OutputRow(
        name,
        compare.sqnr_db(fp32, integer),
        compare.cosine(fp32, integer),
        compare.agreement(fp32, integer) if classes else None,
        compare.kl_divergence(fp32, integer) if classes else None,
        None if labels is None else compare.top1(fp32, labels),
        None if labels is None else compare.top1(integer, labels),
    )


def differing(reference: Mapping[str, Array], got: Mapping[str, Array]) -> int:
    """Elements that differ over all outputs; a missing output differs everywhere."""
    missing = sum(a.size for name, a in reference.items() if name not in got)
    return missing + sum(compare.differing(a, got[name]) for name, a in reference.items() if name in got)


def quantize_inputs(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Codes of an INTEGER graph's inputs; arrays that hold codes already pass unchanged. Raises ConfigError."""
    codes = {}
    for v in graph.inputs:
        if v.name not in inputs:
            raise ConfigError(f"data has no array for the input '{v.name}'; arrays: {', '.join(inputs)}")
        array = inputs[v.name]
        if array.dtype == v.type.numpy:
            codes[v.name] = array
        elif v.type.quant is not None and array.dtype.kind == "f":
            codes[v.name] = v.type.quant.quantize(array)
        else:
            raise ConfigError(f"input '{v.name}' has dtype {array.dtype}; it takes {v.type.numpy} codes or float32")
    return codes


def dequantize(value: Value, codes: Array) -> Array:
    """The reals that codes of ``value`` stand for; the codes themselves where it has no grid."""
    return codes if value.type.quant is None else value.type.quant.dequantize(codes)


def _step(graph: Graph, codes: Mapping[str, Array], batch: int) -> tuple[int, int]:
    """Samples per step, and in all. A graph of a fixed batch takes exactly that many at once."""
    fixed = {v.type.shape[0] for v in graph.inputs if v.type.shape[:1] not in ((), (BATCH,))}
    counts = {len(codes[v.name]) for v in graph.inputs if v.type.shape}
    if len(counts) != 1 or len(fixed) > 1:
        raise ConfigError(f"inputs of graph @{graph.name} have different numbers of samples: {sorted(counts)}")
    (samples,) = counts
    step = fixed.pop() if fixed else batch
    if samples == 0 or (step != batch and samples % step):
        raise ConfigError(f"{samples} samples cannot be split into batches of {step}")
    return step, samples


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {k: _finite(v) for k, v in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [_finite(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data

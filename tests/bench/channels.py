"""What regrouping channels buys at 4 bits: scales by tensor, by channel, by block, and bits by block of channels.

    python tests/bench/channels.py run [MODEL ...] --out channels.jsonl [--draws 5] [--methods …] [--weights 4]
    python tests/bench/channels.py table --out channels.jsonl

The first and last layer have 8 bits. ``mixed`` (the pass mixed-precision, without refinement or inter-layer terms) has
half a bit per weight more, on average, than the methods above it, ends included; ``groups`` are precision groups within
its bytes, with and without rearrangement. ``at 4.5`` they have so many bits on average, whatever the ends take of them.
``tails`` leave 8 bits to an eighth of the channels of activations that have fewer. Draws are random parts of the
calibration data; what is told is of the integer network against fp32 on evaluation data that no choice has seen.
``run`` appends a line per result, and leaves out what the file has already.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from zoo import Subject, subject

from qcc.artifact.sizes import layer_sizes
from qcc.frontend.export import export_onnx
from qcc.frontend.load import load_model
from qcc.ir.graph import Graph
from qcc.passmgr.candidates import Candidates
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass
from qcc.passmgr.target import NARROW_BITS, Capabilities
from qcc.verify.compare import agreement, kl_divergence, sqnr_db, top1
from qcc.verify.ort import OrtModel
from qcc_passes.facts import BitPlan, Ranges, WeightBlocks
from qcc_passes.layers import layers
from qcc_passes.pipelines import NARROW_STRENGTH

MODELS: Final = ("kws_dscnn", "resnet20_cifar10", "squeezenet1_1", "mobilenet_v2_fc8")
DRAWN: Final = {"kws_dscnn": 160, "resnet20_cifar10": 192, "squeezenet1_1": 96, "mobilenet_v2_fc8": 96}
"""Calibration samples per draw."""
LARGE: Final = ("squeezenet1_1", "mobilenet_v2_fc8")
"""Models of which mixed-precision compiles fewer candidates: each takes a minute."""
START: Final = ("fold-batch-norm", "canonicalize", "equalize", "calibrate")
BLOCKED: Final = {"weight_block": 32}
FLOATING: Final = {"weight_block": 16, "exponent_bits": 3, "weight_granularity": "tensor"}
TEMPERATURE: Final = 4.0
"""Of softened outputs, in whose KL all samples count and not the few that the network is not sure of."""
EXTRA: Final = 0.5
"""Bits per weight that the mixed ones have above 4."""
FLAT: Final = f" at {4 + EXTRA}"
"""What ends the names of methods whose average counts no bits of the ends apart."""

Recipe = tuple[Sequence[tuple[str, dict[str, Any]]], dict[str, Any]]
"""Passes between calibration and quantization with their options, and options of ``compiled``."""


def compiled(weights: int, activations: int, *, tails: bool = False, **options: Any) -> dict[str, dict[str, Any]]:
    """Passes from grids to biases, and their options: what candidates are judged by, too."""
    widened: dict[str, Any] = {"widen-residuals": {"bits": 8}} if activations < 8 else {}
    grids = {"weight_bits": weights, "activation_bits": activations, **options}
    last: dict[str, Any] = {"activation-tails": {}} if tails else {}
    return {**widened, "quantize": grids, **last, "round-weights": {}, "bias-correct": {}}


def recipe(method: str, size: float, judged: dict[str, Any]) -> Recipe:
    """How ``method`` compiles; groups have ``size`` bytes at most, and candidates are ``judged``."""
    within = {"budgets": {"size": size}, **judged}
    ordered = ("rearrange-blocks", {"block": BLOCKED["weight_block"], **judged})
    found: dict[str, Recipe] = {
        "tensor": ((), {"weight_granularity": "tensor"}),
        "channel": ((), {}),
        "block 32": ((), BLOCKED),
        "block 32 rearranged": ((ordered,), BLOCKED),
        "block floating point": ((), FLOATING),
        "tails": ((), {"tails": True}),
        "groups": ((("precision-groups", within),), {}),
        "groups unsorted": ((("precision-groups", {"rearrange": False, **within}),), {}),
        "mixed": ((), {}),
    }
    return found[method.removesuffix(FLAT)]


METHODS: Final = (
    "tensor",
    "channel",
    "block 32",
    "block 32 rearranged",
    "block floating point",
    "tails",
    "mixed",
    "groups unsorted",
    "groups",
    f"mixed{FLAT}",
    f"groups{FLAT}",
)

PAIRS: Final = (
    ("block 32 rearranged", "block 32"),
    ("groups", "mixed"),
    ("groups", "groups unsorted"),
    (f"groups{FLAT}", f"mixed{FLAT}"),
    ("tails", "channel"),
)
"""Methods that are compared draw by draw."""


@dataclass(frozen=True)
class Draw:
    """One model, calibrated on one draw, and its evaluation data with what fp32 makes of them."""

    case: Subject
    graph: Graph
    ctx: PassContext
    ranges: Ranges
    """As they were calibrated."""
    evaluation: NDArray[Any]
    exact: NDArray[Any]
    by_layer: dict[tuple[str, int], BitPlan] = field(default_factory=dict)
    """Bits by layer, by method and bits of activations."""
    ready: dict[tuple[str, int], tuple[Graph, BitPlan, dict[str, Any]]] = field(default_factory=dict)
    known: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    """Results by what was compiled: methods may come to the same."""

    @classmethod
    def of(cls, model: str, number: int, weights: int, limit: int | None, cache: Path) -> Draw:
        """Draw ``number``, for weights of ``weights`` bits; ``limit`` bounds the evaluation samples."""
        case = subject(model)
        chosen = np.random.default_rng(number).permutation(len(case.calibration))[: DRAWN[model]]
        able = Capabilities(weight_bits=NARROW_BITS, activation_bits=NARROW_BITS | {16})
        ctx = PassContext(capabilities=able, cache=cache)
        ctx.facts.put(CalibrationData({case.input: case.calibration[chosen].astype(np.float32)}))
        options = {"equalize": {"strength": NARROW_STRENGTH}} if weights < 8 else {}
        start = tuple(make_pass(name, options.get(name)) for name in START)
        graph = Pipeline(start).run(load_model(case.path).graph, ctx)
        evaluation = case.evaluation[:limit].astype(np.float32)
        (exact,) = OrtModel(case.path).run_batched({case.input: evaluation}, 16).values()
        return cls(case, graph, ctx, ctx.facts.get(Ranges), evaluation, exact)

    def budget(self, method: str) -> float:
        """The average of bits when all, or all but the first and last layer, have half a bit more than 4."""
        if method.endswith(FLAT):
            return 4 + EXTRA
        found = layers(self.graph)
        ends = found[0].parameters + found[-1].parameters
        total = sum(layer.parameters for layer in found)
        return (ends * 8 + (total - ends) * (4 + EXTRA)) / total

    def mixed(self, method: str, weights: int, activations: int) -> BitPlan:
        """Bits by layer, within the budget of ``method``: of all candidates what is best on held-out data.

        The pass itself prefers uniform bits, which may need far fewer bytes, to what is not better beyond noise.
        """
        if (method, activations) in self.by_layer:
            return self.by_layer[method, activations]
        # Without inter-layer terms, whose integer programs take minutes on a busy machine.
        objectives, measured = ["separate"], ["sensitivity-perturbation"]
        if self.case.name not in LARGE:
            objectives, measured = [*objectives, "curvature", "uniform"], ["sensitivity-gauss-newton", *measured]
        judged = {"scored_by": compiled(weights, activations)}
        options = {"budgets": {"bits": self.budget(method)}, "tries": 0, "objectives": objectives, **judged}
        passes = (*map(make_pass, measured), make_pass("mixed-precision", options))
        Pipeline(passes).run(self.graph, self.ctx)
        best = min(self.ctx.facts.get(Candidates).tried, key=lambda candidate: candidate.softened)
        self.by_layer[method, activations] = BitPlan(best.weight_bits, {})
        return self.by_layer[method, activations]

    def prepared(self, method: str, weights: int, activations: int) -> tuple[Graph, BitPlan, dict[str, Any]]:
        """The graph and the bits that go into quantize, and its options."""
        if (method, activations) not in self.ready:
            mixed = f"mixed{FLAT}" if method.endswith(FLAT) else "mixed"
            size = self.result(mixed, weights, activations)["bytes"] if method.startswith("groups") else 0
            self.ctx.facts.put(WeightBlocks(None))
            self.ctx.facts.put(self.ranges)
            self.ctx.facts.put(self.mixed(method, weights, activations) if method == mixed else BitPlan({}, {}))
            between, options = recipe(method, size, {"scored_by": compiled(weights, activations)})
            graph = Pipeline(tuple(make_pass(name, given) for name, given in between)).run(self.graph, self.ctx)
            self.ready[method, activations] = graph, self.ctx.facts.get(BitPlan), options
        return self.ready[method, activations]

    def result(self, method: str, weights: int, activations: int) -> dict[str, Any]:
        """Compile by ``method``, and judge."""
        graph, plan, options = self.prepared(method, weights, activations)
        key = (plan, options, weights, activations)
        for (other, *rest), row in self.known:
            if other is graph and tuple(rest) == key:
                return row
        row = self._judged(graph, plan, compiled(weights, activations, **options))
        self.known.append(((graph, *key), row))
        return row

    def _judged(self, graph: Graph, plan: BitPlan, passes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        self.ctx.facts.put(plan)
        self.ctx.facts.put(WeightBlocks(None))
        self.ctx.facts.put(self.ranges)
        integer = Pipeline((*starmap(make_pass, passes.items()), make_pass("dyadic"))).run(graph, self.ctx)
        (value,) = integer.inputs
        grid, outcome = value.type.quant, integer.outputs[0].type.quant
        if grid is None or outcome is None:
            raise SystemExit(f"{self.case.name}: an input or output has no grid")
        (codes,) = OrtModel(export_onnx(integer)).run_batched({value.name: grid.quantize(self.evaluation)}, 16).values()
        logits = outcome.dequantize(codes)
        sizes = layer_sizes(integer)
        size = sum(s.bytes for s in sizes)
        row = {
            "sqnr": sqnr_db(self.exact, logits),
            "kl": kl_divergence(self.exact, logits),
            "soft": kl_divergence(self.exact / TEMPERATURE, logits / TEMPERATURE),
            "agreement": agreement(self.exact, logits),
            "bytes": size,
            "bits": 8 * size / sum(prod(s.shape) for s in sizes),
            "samples": len(self.evaluation),
        }
        labels = self.case.labels
        return row if labels is None else row | {"top1": top1(logits, labels[: len(logits)])}


def run(chosen: argparse.Namespace) -> None:
    """Append what is missing, draw by draw."""
    done = {(r["model"], r["draw"], r.get("weights", 4), r["activations"], r["method"]) for r in read(chosen.out)}
    for model in chosen.models or MODELS:
        for number in range(chosen.first, chosen.draws):
            cells = [(a, m) for a in chosen.activations for m in chosen.methods if m != "tails" or a < 8]
            wanted = [cell for cell in cells if (model, number, chosen.weights, *cell) not in done]
            if not wanted:
                continue
            draw = Draw.of(model, number, chosen.weights, chosen.limit, chosen.cache)
            for activations, method in wanted:
                start = time.monotonic()
                row = draw.result(method, chosen.weights, activations)
                kind = {"model": model, "draw": number, "weights": chosen.weights, "activations": activations}
                line = {**kind, "method": method, **row}
                with chosen.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                shown = {k: round(v, 4) for k, v in row.items()}
                clock = f"{time.strftime('%H:%M:%S')} {time.monotonic() - start:.0f} s"
                print(clock, model, f"draw {number}, W{chosen.weights}A{activations}, {method}:", shown, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(chosen: argparse.Namespace) -> None:
    """Means over the draws, and gains draw by draw, with standard deviations."""
    print("| model | bits | method | SQNR dB | gain | KL nats | softened | top-1 % | bytes | bits per weight | draws |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    rows = read(chosen.out)

    def kind(r: Mapping[str, Any]) -> tuple[str, int, int]:
        return r["model"], r.get("weights", 4), r["activations"]

    for model, weights, activations in dict.fromkeys(map(kind, rows)):
        mine = [r for r in rows if kind(r) == (model, weights, activations)]
        base = {r["draw"]: r["sqnr"] for r in mine if r["method"] == "channel"}
        for method in METHODS:
            if some := [r for r in mine if r["method"] == method]:
                print("|", " | ".join((model, f"W{weights}A{activations}", method, *_cells(some, base))), "|")

    print()
    print("| model | bits | method | against | SQNR dB | softened KL | KL ratio | bytes ratio | better, same, worse |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model, weights, activations in dict.fromkeys(map(kind, rows)):
        cells = {(r["method"], r["draw"]): r for r in rows if kind(r) == (model, weights, activations)}
        for first, second in PAIRS:
            pairs = [(r, cells[second, d]) for (m, d), r in cells.items() if m == first and (second, d) in cells]
            if pairs:
                print("|", " | ".join((model, f"W{weights}A{activations}", first, second, *_gains(pairs))), "|")


def _gains(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Iterator[str]:
    """Of one method against another, draw by draw; better is less softened KL."""
    yield _told([a["sqnr"] - b["sqnr"] for a, b in pairs], 2, "+")
    for metric, digits in (("soft", 2), ("kl", 2), ("bytes", 4)):
        yield _told([a[metric] / b[metric] for a, b in pairs], digits)
    signs = [np.sign(b["soft"] - a["soft"]) for a, b in pairs]
    yield ", ".join(str(signs.count(s)) for s in (1, 0, -1))


def _told(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean and standard deviation."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return f"{np.mean(values):{sign}.{digits}f} ± {deviation:.{digits}f}" if values else "–"


def _cells(some: Sequence[Mapping[str, Any]], base: Mapping[int, float]) -> Iterator[str]:
    """Of one method's results by draw; ``base`` is the SQNR of scales by channel in each."""
    yield _told([r["sqnr"] for r in some], 2)
    yield _told([r["sqnr"] - base[r["draw"]] for r in some if r["draw"] in base], 2, "+")
    yield _told([r["kl"] for r in some], 4)
    yield _told([r["soft"] for r in some], 5)
    yield _told([100 * r["top1"] for r in some if "top1" in r], 1)
    yield from (f"{np.mean([r['bytes'] for r in some]):.0f}", f"{np.mean([r['bits'] for r in some]):.3f}")
    yield str(len(some))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, help="first draw")
    parser.add_argument("--draws", type=int, default=5, help="end of the draws")
    parser.add_argument(
        "--weights", type=int, default=4, help="bits; of others than 4 only scales by tensor or channel"
    )
    parser.add_argument("--activations", type=lambda text: [int(b) for b in text.split(",")], default=[8, 4])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--limit", type=int, help="evaluation samples; default: all")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/qcc-bench-channels"))
    chosen = parser.parse_args()
    run(chosen) if chosen.what == "run" else table(chosen)


if __name__ == "__main__":
    main()

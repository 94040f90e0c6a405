"""Mixed precision at equal average weight bits: uniform, HAWQ-V2's trace ILP, and qcc's choice.

    python tests/bench/mixed_precision.py run --out bits.jsonl [--draws 5] [--bits 8,6,5,4,3] [MODEL ...]
    python tests/bench/mixed_precision.py table --out bits.jsonl

Every network goes through the default pipeline; only the bits of the weights differ. The first and
last layer of the uniform assignment and of the trace ILP have 8 bits; ``ours`` chooses theirs as well, by
mixed-precision and then, below 8 bits, inside the layers by precision-groups (but not with ``--layers``).
Each budget is the average of bits that the uniform assignment has.
Draws are random halves (or more) of the calibration data. KL, agreement and SQNR are those of the
integer network against fp32 on evaluation data, which no choice has seen; KL, which a few images decide, also on
mirror images of those of 32 by 32 pixels, and on both moved by two pixels. ``run`` appends one line
per result, and leaves out what the file has already. Of ``--extras``, W4A4 lines take 4-bit activations as well, but
8-bit ones in residual additions; lines of 4 or 8 let the program choose between these alone, within the bits that 8 for
the first, the last and all depthwise layers would take, and say how many of the latter it gave them.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from zoo import SUBJECTS, Subject, subject

from qcc.frontend.export import export_onnx
from qcc.frontend.load import load_model
from qcc.ir.graph import Graph
from qcc.passmgr.base import Pass
from qcc.passmgr.candidates import Candidates
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass, make_recipe
from qcc.passmgr.target import Capabilities
from qcc.verify.compare import agreement, kl_divergence, sqnr_db, top1
from qcc.verify.ort import OrtModel
from qcc_passes.channel_rules import is_depthwise
from qcc_passes.facts import BitPlan
from qcc_passes.layers import layers
from qcc_passes.precision_groups import PrecisionGroupsFound

MODELS: Final = ("resnet20_cifar10", "mlperf_tiny_ic_resnet8", "kws_dscnn", "mobilenet_v2_fc8")
METHODS: Final = ("uniform", "trace ILP", "ours")
DRAWN: Final = {"resnet20_cifar10": 384, "mlperf_tiny_ic_resnet8": 384, "kws_dscnn": 160, "mobilenet_v2_fc8": 192}
"""Calibration samples per draw."""
MEASURED: Final = ("kl", "agreement", "sqnr", "top1", "fp32")
ENDS: Final = 8
SMALL_IMAGE: Final = {3, 32}


@dataclass(frozen=True, slots=True)
class Scene:
    """One model and one draw: measured up to where bits are chosen, and how to go on from there."""

    case: Subject
    graph: Graph
    ctx: PassContext
    rest: tuple[Pass, ...]
    exact: np.ndarray[Any, np.dtype[np.float32]]
    evaluation: Mapping[str, np.ndarray[Any, Any]]
    own: int
    """Evaluation samples that come first, without views of them."""
    batch: int


def prepare(case: Subject, draw: int, cache: Path, limit: int | None, samples: int | None) -> Scene:
    """Calibrate and measure sensitivities on one draw."""
    rng = np.random.default_rng(draw)
    chosen = rng.permutation(len(case.calibration))[: samples or DRAWN[case.name]]
    bits = frozenset(range(2, 9))
    ctx = PassContext(capabilities=Capabilities(weight_bits=bits, activation_bits=bits | {16}), cache=cache)
    ctx.facts.put(CalibrationData({case.input: case.calibration[chosen].astype(np.float32)}))
    passes = make_recipe("default", {"mixed-precision": {"budgets": {"bits": 8}}})
    at = [p.name for p in passes].index("mixed-precision")
    graph = Pipeline(passes[:at]).run(load_model(case.path).graph, ctx)
    batch = 16
    own = case.evaluation[:limit].astype(np.float32)
    evaluation = {case.input: views(own) if set(own.shape) >= SMALL_IMAGE else own}
    (exact,) = OrtModel(case.path).run_batched(evaluation, batch).values()
    return Scene(case, graph, ctx, passes[at + 1 :], exact, evaluation, len(own), batch)


def views(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The images, their mirror images, and both moved by two pixels, as images are shown in training."""
    rows = 1 if images.shape[-1] == 3 else 2
    mirrored = np.flip(images, rows + 1)
    pads = [(2, 0) if axis in (rows, rows + 1) else (0, 0) for axis in range(images.ndim)]
    size = images.shape[rows]
    moved = [
        np.pad(x, pads, mode="reflect").take(range(size), rows).take(range(size), rows + 1) for x in (images, mirrored)
    ]
    return np.concatenate([images, mirrored, *moved])


@dataclass(frozen=True, slots=True)
class Choice:
    """Bits that a method chose, for ``graph``, and what it says of them."""

    graph: Graph
    bits: BitPlan
    said: Mapping[str, Any]

    @property
    def plain(self) -> dict[str, Any]:
        """The bits as plain data: by layer, or by runs of its channels."""
        return {n: self.bits.widths[n].runs if n in self.bits.widths else b for n, b in self.bits.weight_bits.items()}


def result(scene: Scene, choice: Choice, rest: Sequence[Pass] | None = None) -> dict[str, float]:
    """What the integer network with these weight bits gives on the evaluation data."""
    scene.ctx.facts.put(choice.bits)
    integer = Pipeline(tuple(rest or scene.rest)).run(choice.graph, scene.ctx)
    found = OrtModel(export_onnx(integer)).run_batched(_codes(scene, integer), scene.batch)
    quant = integer.outputs[0].type.quant
    (codes,) = found.values()
    logits = codes if quant is None else quant.dequantize(codes)
    exact, own = scene.exact[: scene.own], logits[: scene.own]
    row = {"kl": kl_divergence(scene.exact, logits), "agreement": agreement(exact, own), "sqnr": sqnr_db(exact, own)}
    labels = scene.case.labels
    if labels is not None:
        row |= {"top1": top1(own, labels[: len(own)]), "fp32": top1(exact, labels[: len(own)])}
    return row


def _codes(scene: Scene, integer: Graph) -> dict[str, np.ndarray[Any, Any]]:
    (value,) = integer.inputs
    quant = value.type.quant
    array = scene.evaluation[scene.case.input]
    return {value.name: array if quant is None else quant.quantize(array).astype(value.type.numpy)}


def choices(
    scene: Scene, bits: int, methods: Sequence[str], more: Mapping[str, Any], groups: bool
) -> Iterator[tuple[str, Choice]]:
    """What each method chooses at the average of the uniform assignment; ``more`` are options of mixed-precision."""
    found = layers(scene.graph)
    ends = {found[0].name, found[-1].name}
    uniform = {layer.name: max(bits, ENDS) if layer.name in ends else bits for layer in found}
    average = sum(layer.parameters * uniform[layer.name] for layer in found) / sum(layer.parameters for layer in found)
    for method in methods:
        if method == "uniform":
            yield method, Choice(scene.graph, BitPlan(uniform, {}), {"average": average})
            continue
        trace = method == "trace ILP"
        alone = {"objectives": ["curvature"], "scored_by": {}, "ends": ENDS} if trace else {}
        options = {"budgets": {"bits": average}, **more, **alone}
        graph = Pipeline((make_pass("mixed-precision", options),)).run(scene.graph, scene.ctx)
        best = scene.ctx.facts.get(Candidates).tried[0]
        said = {"average": best.costs["bits"], "objective": best.objective, "gap": best.gap, "held_out_kl": best.kl}
        if groups and not trace:
            graph = Pipeline((make_pass("precision-groups"),)).run(graph, scene.ctx)
            inside = scene.ctx.facts.get(PrecisionGroupsFound)
            said |= {"average": inside.used["bits"], "rearranged": inside.rearranged}
        yield method, Choice(graph, scene.ctx.facts.get(BitPlan), said)


def run(chosen: argparse.Namespace) -> None:
    """Append what is missing."""
    options: dict[str, Any] = {"tries": chosen.tries}
    if chosen.objectives:
        options["objectives"] = chosen.objectives.split(",")
    if chosen.proxy:
        options = {"objectives": ["pairwise", "separate", "curvature", "uniform"], **options, "scored_by": {}}
    done = {(r["model"], r["draw"], r["bits"], r["method"]) for r in read(chosen.out)}
    for model in chosen.models or MODELS:
        for draw in range(chosen.first, chosen.draws):
            wanted = [(b, m) for b in chosen.bits for m in chosen.methods if (model, draw, b, m) not in done]
            if not wanted and not chosen.extras:
                continue
            scene = prepare(subject(model), draw, chosen.cache, chosen.limit, chosen.samples)
            for bits in dict.fromkeys(b for b, _ in wanted):
                found = [r for r in read(chosen.out) if (r["model"], r["draw"], r["bits"]) == (model, draw, bits)]
                methods = [m for b, m in wanted if b == bits]
                for method, choice in choices(scene, bits, methods, options, groups=not chosen.layers and bits < ENDS):
                    plan = json.loads(json.dumps(choice.plain))
                    same = next((r for r in found if r["plan"] == plan and not choice.bits.widths), None)
                    row = result(scene, choice) if same is None else {k: same[k] for k in MEASURED if k in same}
                    row |= {**choice.said, "plan": plan}
                    found.append(row)
                    append(chosen.out, model, draw, bits, method, row)
            for bits, method, row in extras(scene, model, draw, done) if chosen.extras else ():
                append(chosen.out, model, draw, bits, method, row)


def extras(scene: Scene, model: str, draw: int, done: set[tuple[str, int, int, str]]) -> Iterator[tuple[int, str, Any]]:
    """Uniform W4A4, with the first and last layer and what residual additions read at 8 bits; and 4 or 8 bits."""
    if (model, draw, 4, "uniform W4A4") not in done:
        narrow = [p.model_copy(update={"activation_bits": 4}) if p.name == "quantize" else p for p in scene.rest]
        _, choice = next(choices(scene, 4, ["uniform"], {}, groups=False))
        measured = result(scene, choice, (make_pass("widen-residuals", {"bits": 8}), *narrow))
        yield 4, "uniform W4A4", {**measured, **choice.said, "plan": choice.plain}
    if depthwise(scene.graph) and (model, draw, 4, "4 or 8") not in done:
        choice = four_or_eight(scene)
        given = {name: choice.bits.weight_bits[name] for name in depthwise(scene.graph)}
        eights = {"depthwise": len(given), "depthwise at 8": sum(b == ENDS for b in given.values())}
        yield 4, "4 or 8", {**result(scene, choice), **choice.said, **eights, "plan": choice.plain}


def depthwise(graph: Graph) -> set[str]:
    """The layers that keep each channel apart."""
    return {o.result.name for o in graph.ops if is_depthwise(o)}


def four_or_eight(scene: Scene) -> Choice:
    """What the program chooses from 4 and 8 bits, within the average that 8 where they are usually kept would take."""
    found = layers(scene.graph)
    wide = depthwise(scene.graph) | {found[0].name, found[-1].name}
    total = sum(layer.parameters * (ENDS if layer.name in wide else 4) for layer in found)
    average = total / sum(layer.parameters for layer in found)
    options = {"budgets": {"bits": average}, "weight_bits": [4, ENDS], "objectives": ["separate"], "scored_by": {}}
    graph = Pipeline((make_pass("mixed-precision", options),)).run(scene.graph, scene.ctx)
    best = scene.ctx.facts.get(Candidates).tried[0]
    return Choice(graph, scene.ctx.facts.get(BitPlan), {"average": best.costs["bits"], "gap": best.gap})


def append(path: Path, model: str, draw: int, bits: int, method: str, row: Mapping[str, Any]) -> None:
    line = {"model": model, "draw": draw, "bits": bits, "method": method, **row}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    shown = {k: round(v, 5) for k, v in row.items() if isinstance(v, float)}
    print(time.strftime("%H:%M:%S"), model, f"draw {draw}, {bits} bits, {method}:", shown, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(chosen: argparse.Namespace) -> None:
    """Means over the draws, with the standard deviation of KL; then ours less the others, draw by draw."""
    rows = read(chosen.out)
    print("| model | bits | method | average | top-1 % | agreement % | SQNR dB | KL nats, mean ± sd | draws |")
    print("|---|---|---|---|---|---|---|---|---|")
    keys = dict.fromkeys((r["model"], r["bits"], r["method"]) for r in rows)
    for model, bits, method in sorted(keys, key=lambda k: (k[0], -k[1], k[2])):
        some = [r for r in rows if (r["model"], r["bits"], r["method"]) == (model, bits, method)]
        mean = {k: float(np.mean([r[k] for r in some])) for k in ("average", "agreement", "sqnr", "kl", "top1", "fp32")}
        sd = float(np.std([r["kl"] for r in some], ddof=1)) if len(some) > 1 else 0.0
        print(
            f"| {model} | {bits} | {method} | {mean['average']:.2f} | {100 * mean['top1']:.1f} "
            f"(fp32 {100 * mean['fp32']:.1f}) | {100 * mean['agreement']:.1f} | {mean['sqnr']:.1f} "
            f"| {mean['kl']:.5f} ± {sd:.5f} | {len(some)} |"
        )
    print("\n| model | bits | KL of ours less that of | mean ± standard error | less in |")
    print("|---|---|---|---|---|")
    kl = {(r["model"], r["bits"], r["method"], r["draw"]): r["kl"] for r in rows}
    for model, bits, method in sorted(keys, key=lambda k: (k[0], -k[1], k[2])):
        mine = {d: v for (m, b, name, d), v in kl.items() if (m, b, name) == (model, bits, METHODS[-1])}
        pairs = [(v, kl[model, bits, method, d]) for d, v in mine.items() if (model, bits, method, d) in kl]
        if method not in METHODS[:-1] or not pairs:
            continue
        less = [a - b for a, b in pairs]
        error = float(np.std(less, ddof=1)) / len(less) ** 0.5 if len(less) > 1 else 0.0
        wins = sum(x < 0 for x in less)
        print(f"| {model} | {bits} | {method} | {np.mean(less):+.5f} ± {error:.5f} | {wins} of {len(less)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(SUBJECTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, help="first draw")
    parser.add_argument("--draws", type=int, default=5, help="end of the draws")
    parser.add_argument("--bits", type=lambda text: [int(b) for b in text.split(",")], default=[8, 6, 5, 4, 3])
    parser.add_argument("--methods", type=lambda text: [m for m in text.split(",") if m], default=list(METHODS))
    parser.add_argument("--samples", type=int, help="calibration samples per draw")
    parser.add_argument("--limit", type=int, help="evaluation samples; default: all")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/qcc-bench-bits"))
    parser.add_argument("--tries", type=int, default=16, help="assignments that refining tries, each compiled")
    parser.add_argument("--objectives", help="comma-separated; default: all")
    parser.add_argument("--proxy", action="store_true", help="score candidates by rounding alone: for large models")
    parser.add_argument("--layers", action="store_true", help="one width per layer in ours, too")
    parser.add_argument("--extras", action="store_true", help="uniform W4A4 as well")
    chosen = parser.parse_intermixed_args()
    run(chosen) if chosen.what == "run" else table(chosen)


if __name__ == "__main__":
    main()

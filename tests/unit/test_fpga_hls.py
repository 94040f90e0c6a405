"""HLS C++: the same bits as the reference, from plain C++ with checked streams."""

import itertools
import random
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fpga_cases import CASES, together
from numpy.typing import NDArray

from qcc.errors import TargetError
from qcc.ir.graph import Graph
from qcc.verify.fuzz_graphs import make_case
from qcc.verify.interp import evaluate
from qcc_targets.fpga.dataflow import streaming
from qcc_targets.fpga.folding import Folding, legal
from qcc_targets.fpga.hls import SOURCE, Frame, HlsProgram, hls_sources
from qcc_targets.fpga.stages import Dataflow, Pool, Reduce, Stage
from qcc_targets.fpga.tools import CXX

Array = NDArray[Any]


def needs_compiler() -> None:
    if CXX.find() is None:
        pytest.skip(f"no g++ here: {CXX.install}")


def drawn(network: Dataflow, seed: int) -> dict[str, Folding]:
    draw = random.Random(seed)
    return {s.name: draw.choice(legal(s)) for s in network.stages}


def program(network: Dataflow, folder: Path) -> HlsProgram:
    ins, outs = ([Frame.of(p) for p in ports] for ports in (network.inputs, network.outputs))
    return HlsProgram(ins, outs, folder, "-O0")


def differing(graph: Graph, inputs: Mapping[str, Array], seed: int) -> int:
    """Elements in which the C++ of ``graph`` with random foldings differs from the reference."""
    network = streaming(graph)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, text in hls_sources(network, drawn(network, seed)).items():
            (folder / name).write_text(text)
        got = program(network, folder).run([inputs[v.name] for v in graph.inputs])
    expected = evaluate(graph, inputs)
    pairs = [(expected[v.name], y) for v, y in zip(graph.outputs, got, strict=True)]
    return sum(int(np.count_nonzero(e != y.reshape(e.shape))) for e, y in pairs)


def kind(stage: Stage) -> tuple[Any, ...]:
    detail = stage.kind if isinstance(stage, (Pool, Reduce)) else len(stage.inputs) > 1
    return type(stage), detail


def random_cases() -> Iterator[tuple[Graph, Mapping[str, Array], int]]:
    """Random graphs that stream, each with a kind of stage that none before it has."""
    seen: set[tuple[Any, ...]] = set()
    for seed in range(300):
        case = make_case(seed, 0)
        try:
            network = streaming(case.graph)
        except TargetError:
            continue
        kinds = {kind(s) for s in network.stages}
        if len(network.stages) > 1 and kinds - seen:
            seen |= kinds
            yield case.graph, case.inputs, seed


def test_networks_agree_with_the_reference() -> None:
    needs_compiler()
    graph, inputs, _ = together(CASES, 3)
    cases = [(graph, inputs, 0), *itertools.islice(random_cases(), 5)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda case: differing(*case), cases))
    assert found == [0] * len(cases)


def test_the_source_is_scheduled_by_the_folding() -> None:
    graph, _ = next(c for c in CASES if c.name == "conv").build(1)
    network = streaming(graph)
    (stage,) = network.stages
    text = hls_sources(network, {stage.name: Folding(pe=4, simd=2)})[SOURCE]
    assert "#pragma HLS DATAFLOW" in text
    assert "#pragma HLS PIPELINE II=1" in text
    assert text.count("#pragma HLS UNROLL") >= 3
    assert "qcc_int<" in text and "float" not in text


def test_codes_that_do_not_add_up_are_found(tmp_path: Path) -> None:
    needs_compiler()
    graph, inputs = next(c for c in CASES if c.name == "conv").build(1)
    network = streaming(graph)
    for name, text in hls_sources(network, drawn(network, 0)).items():
        # The last word of every frame is lost.
        (tmp_path / name).write_text(text.replace("in0.write(element);", "if (i) in0.write(element);"))
    broken = program(network, tmp_path)
    with pytest.raises(TargetError, match="stream in0: read while empty") as caught:
        broken.run([inputs[v.name] for v in graph.inputs])
    Path(str(caught.value).rpartition("log: ")[2]).unlink()

"""Weights of 2 to 7 bits on the C target: dense in its constants, and bit for bit the reference's results."""

import json
import subprocess
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.packing import lowest, packed_size
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.trial import trial_session
from qcc.verify.interp import evaluate
from qcc_targets.c.target import MEMORY, CTarget
from qcc_targets.c.toolchain import STRICT

UNIT = Quant(8, False, (Dyadic(1, 4),), 3)
SHAPES = {"conv": (13, 5, 3, 3), "grouped": (6, 2, 3, 1), "dense": (9, 31)}


def network(bits: int) -> Graph:
    """A convolution, a grouped one with a residual, and a dense layer, side by side, with odd numbers of weights."""
    b = GraphBuilder(f"bits{bits}", Stage.INTEGER)
    rng = np.random.default_rng(bits)

    def layer(kind: str, x: Value, shape: tuple[int, ...], *more: Value, **attrs: Any) -> Value:
        low = lowest("i8", bits)
        codes = rng.integers(low, -low, shape).astype(np.int8)
        codes.flat[:2] = low, -low - 1
        w = b.constant(codes, "w", quant=Quant(bits, True, (Dyadic(1, 7),) * shape[0], axis=0))
        gain = 2**32 / (75 * -low * np.prod(shape[1:]) ** 0.5) * 40
        m = b.constant((rng.uniform(0.3, 1, shape[0]) * gain).astype(np.int32), "m")
        c = b.constant(rng.integers(20 << 32, 200 << 32, shape[0]), "c")
        extra = [v for r in more for v in (r, b.constant(np.full(shape[0], 1 << 28, np.int32), "mr"))]
        return b.op(kind, [x, w, m, c, *extra], quant=UNIT, shift=32, qmin=0, qmax=255, **attrs)

    window = {"strides": (1, 1), "dilations": (1, 1)}
    image = b.input("image", (BATCH, 5, 6, 7), "u8", UNIT)
    pair = b.input("pair", (BATCH, 6, 5, 3), "u8", UNIT)
    rows = b.input("rows", (BATCH, 31), "u8", UNIT)
    conv = layer("iconv2d", image, SHAPES["conv"], pads=(1, 1, 1, 1), groups=1, **window)
    grouped = layer("iconv2d", pair, SHAPES["grouped"], pair, pads=(1, 0, 1, 0), groups=3, **window)
    return b.graph([conv, grouped, layer("idense", rows, SHAPES["dense"])])


@pytest.mark.parametrize("bits", range(2, 9))
def test_narrow_weights_give_the_reference_bits(bits: int) -> None:
    optimize: Literal["speed", "size"] = "speed" if bits % 2 else "size"
    graph = network(bits)
    rng = np.random.default_rng(1)
    inputs = {v.name: rng.integers(0, 256, (3, *v.type.shape[1:])).astype(np.uint8) for v in graph.inputs}
    expected = evaluate(graph, inputs)
    assert all(len(np.unique(a)) > 20 for a in expected.values())
    with trial_session(graph, CTarget(optimize=optimize)) as session:
        got = session.run(inputs, raw=True)
    for name, codes in expected.items():
        assert np.array_equal(got[name], codes), name


@pytest.mark.parametrize("bits", [3, 4])
def test_unpacking_stays_inside_its_arrays(bits: int, tmp_path: Path) -> None:
    CTarget(optimize="size").build(network(bits), PassContext(), tmp_path)
    arrays = "static uint8_t image[210], pair[90], rows[31], conv[546], grouped[90], dense[9];"
    call = f"bits{bits}_run(image, pair, rows, conv, grouped, dense);"
    (tmp_path / "host.c").write_text(f'#include "network.h"\n{arrays}\nint main(void) {{ {call} return 0; }}\n')
    command = ["cc", *STRICT, "-fsanitize=address,undefined", "-fno-sanitize-recover", "-o", "host"]
    subprocess.run([*command, "network.c", "host.c"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "host"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_narrow_weights_take_their_bits(optimize: Literal["speed", "size"], tmp_path: Path) -> None:
    sizes = {}
    for bits in (3, 8):
        CTarget(optimize=optimize).build(network(bits), PassContext(), tmp_path)
        sizes[bits] = json.loads((tmp_path / MEMORY).read_text())["constants"]
    counts = [int(np.prod(shape)) for shape in SHAPES.values()]
    saved = sum(n - packed_size(n, 3) for n in counts)
    assert sizes[8] - sizes[3] > saved - 64 * len(counts)  # vectors behind the weights are aligned

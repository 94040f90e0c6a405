# ruff: noqa: T201 - a measurement prints
"""How long ResNet-50 takes to compile for NVIDIA GPUs, from its integer graph on: one row per architecture and batch.

    python tests/bench/cuda_compile.py [--batch 1 64] [--arch sm_90 ...]

The shapes are the published ones, the weights random: compiling does not depend on them. Neither a GPU nor a
driver is needed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from resnets import DEPTHS

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.runtime.cuda_program import CUDA_PROGRAM, CudaProgram
from qcc_targets.cuda.target import CudaTarget

U8 = Quant(8, False, (Dyadic.of(0.1),))
U16 = Quant(16, False, (Dyadic.of(0.001),))


class _Net:
    def __init__(self) -> None:
        self.b = GraphBuilder("resnet50", Stage.INTEGER)
        self.rng = np.random.default_rng(0)

    def layer(
        self, kind: str, x: Value, outputs: int, *window: int, residual: Value | None = None, **attrs: Any
    ) -> Value:
        shape = (outputs, x.type.shape[1], *window)
        w = self.b.constant(self.rng.integers(-127, 128, shape).astype(np.int8), "w")
        m = self.b.constant(self.rng.integers(1 << 16, 1 << 20, outputs).astype(np.int32), "m")
        c = self.b.constant(np.full(outputs, 1 << 31, np.int64), "c")
        more = [] if residual is None else [residual, self.b.constant(np.full(outputs, 1 << 30, np.int32), "mr")]
        return self.b.op(kind, [x, w, m, c, *more], quant=U8, shift=32, qmin=0, qmax=255, **attrs)

    def conv(self, x: Value, outputs: int, kernel: int, stride: int = 1, residual: Value | None = None) -> Value:
        attrs = {"strides": (stride,) * 2, "pads": (kernel // 2,) * 4, "dilations": (1, 1), "groups": 1}
        return self.layer("iconv2d", x, outputs, kernel, kernel, residual=residual, **attrs)


def resnet50() -> Graph:
    """The integer graph: bytes stand for all tensors, words for the input."""
    n = _Net()
    y = n.conv(n.b.input("image", (BATCH, 3, 224, 224), "u16", U16), 64, 7, 2)
    y = n.b.op("max_pool2d", [y], kernel=(3, 3), strides=(2, 2), pads=(1,) * 4, dilations=(1, 1), quant=U8)
    for stage, depth in enumerate(DEPTHS["resnet50"][0]):
        width = 64 << stage
        for index in range(depth):
            stride = 2 if stage and not index else 1
            shortcut = y if index else n.conv(y, 4 * width, 1, stride)
            inner = n.conv(n.conv(y, width, 1), width, 3, stride)
            y = n.conv(inner, 4 * width, 1, residual=shortcut)
    m, c = n.b.constant(np.full(1, 1 << 26, np.int32), "m"), n.b.constant(np.full(1, 1 << 31, np.int64), "c")
    y = n.b.op("ireduce_sum", [y, m, c], axes=(2, 3), keepdims=False, quant=U8, shift=32, qmin=0, qmax=255)
    return n.b.graph([n.layer("idense", y, 1000)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--arch", nargs="+", default=["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "compute_90"])
    chosen = parser.parse_args()
    graph = resnet50()
    print(f"{'architecture':14} {'batch':>5} {'seconds':>8} {'launches':>8} {'kernels':>8} {'KiB':>7}")
    for batch in chosen.batch:
        for arch in chosen.arch:
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                CudaTarget(arch=(arch,), batch=batch).build(graph, PassContext(), Path(folder))
                seconds = time.perf_counter() - start
                program = CudaProgram.from_bytes((Path(folder) / CUDA_PROGRAM).read_bytes())
                size = (Path(folder) / program.images[0].file).stat().st_size
            kernels = len({launch.kernel for launch in program.launches})
            row = f"{arch:14} {batch:5} {seconds:8.1f} {len(program.launches):8} {kernels:8} {size >> 10:7}"
            print(row, flush=True)


if __name__ == "__main__":
    main()

"""The machine code of every architecture: tensor cores in convolutions, dot products where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc.errors import TargetError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.passmgr.plugins import make_target
from qcc.runtime.cuda_program import CUDA_PROGRAM, CudaProgram
from qcc_targets.cuda import disassembly
from qcc_targets.cuda.disassembly import DOT, TENSOR, count_instructions, count_of, find_disassembler, instructions

ARCHITECTURES = ("sm_75", "sm_80", "sm_89", "sm_90")


def network() -> Graph:
    """A convolution of 32 channels, a depthwise one, their mean, and a dense layer."""
    b = GraphBuilder("network", Stage.INTEGER)
    rng = np.random.default_rng(0)
    grid = Quant(8, False, (Dyadic(1, 0),), 0)

    def layer(kind: str, x: Any, name: str, *shape: int, **fields: Any) -> Any:
        w = b.constant(rng.integers(-100, 100, shape, np.int8), f"{name}_w")
        m = b.constant(np.full(shape[0], 1 << 18, np.int32), f"{name}_m")
        c = b.constant(np.full(shape[0], 1 << 31, np.int64), f"{name}_c")
        return b.op(kind, (x, w, m, c), name=name, quant=grid, shift=32, qmin=0, qmax=255, **fields)

    window: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    y = layer("iconv2d", b.input("x", (BATCH, 32, 8, 8), "u8", grid), "conv", 32, 32, 3, 3, groups=1, **window)
    y = layer("iconv2d", y, "depthwise", 32, 1, 3, 3, groups=32, **window)
    y = b.op("reduce_max", (y,), name="pool", axes=(2, 3), keepdims=False, quant=grid)
    return b.graph([layer("idense", y, "dense", 10, 32)])


def test_convolutions_use_tensor_cores_and_the_rest_dot_products(tmp_path: Path) -> None:
    try:
        find_disassembler()
    except TargetError as e:
        pytest.skip(str(e))
    make_target("cuda", {"arch": ",".join(ARCHITECTURES)}).build(network(), PassContext(), tmp_path)
    program = CudaProgram.from_bytes((tmp_path / CUDA_PROGRAM).read_bytes())
    kernels = {launch.result: launch.kernel for launch in program.launches}
    assert [image.arch for image in program.images] == list(ARCHITECTURES)
    for image in program.images:
        found = instructions(tmp_path / image.file)
        assert set(kernels.values()) <= set(found)
        assert count_of(found[kernels["conv"]], TENSOR) >= 4, image.arch
        assert count_of(found[kernels["depthwise"]], TENSOR) == 0, image.arch
        assert count_of(found[kernels["depthwise"]], DOT) >= 4, image.arch
        assert count_of(found[kernels["dense"]], DOT) >= 1, image.arch
        assert not any(
            name.startswith(("FMUL", "FFMA", "FADD", "DMUL")) for counts in found.values() for name in counts
        )


def test_instructions_are_counted_by_kernel() -> None:
    text = """
        .section        .text.one,"ax",@progbits
        .sectioninfo    @"SHI_REGISTERS=10"
        /*0000*/                   IMMA.16832.U8.S8 R8, R20.reuse.ROW, R16.COL, R8 ;
        /*0010*/              @!P0 IMMA.16832.S8.S8 R8, R20, R16.COL, R8 ;
        .section        .text.two,"ax",@progbits
        /*0000*/              @P1 IDP.4A.U8.S8 R2, R3, R4, R2 ;
        /*0010*/                   EXIT ;
    """
    assert count_instructions(text) == {"one": {"IMMA": 2}, "two": {"IDP": 1, "EXIT": 1}}


def test_without_a_disassembler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disassembly, "_TOOL", "no-such-tool")
    with pytest.raises(TargetError, match="'no-such-tool' is not on the PATH; install nvidia-cuda-nvdisasm"):
        instructions(tmp_path / "x.cubin")


def test_what_is_no_machine_code_is_refused(tmp_path: Path) -> None:
    try:
        find_disassembler()
    except TargetError as e:
        pytest.skip(str(e))
    (tmp_path / "x.cubin").write_bytes(b"nothing")
    with pytest.raises(TargetError, match=r"cannot disassemble .*x\.cubin"):
        instructions(tmp_path / "x.cubin")

"""TensorIR functions with bound threads as one CUDA source, through TVM's code generator."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

import tvm
import tvm_ffi
from tvm import s_tir, tirx

_DEVICE_KERNEL: Final = 2
"""TVM's calling convention of functions that are launched on a device."""
_FIRST_KERNEL: Final = 'extern "C" __global__'

HEADERS: Final = ("types.cuh", "ptx.cuh", "shape.cuh", "tensor.cuh", "dot.cuh", "pool.cuh")
"""Files of ``device/``, in the order in which a source begins with them."""


def _target() -> Any:
    spec = {"kind": "cuda", "arch": "sm_75", "max_threads_per_block": 1024, "thread_warp_size": 32}
    return tvm.target.Target(spec | {"max_shared_memory_per_block": 49152})


def cuda_source(functions: Mapping[str, tirx.PrimFunc]) -> str:
    """The whole source of ``functions``, which keep their names and parameters; it includes no file."""
    device = _target()
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    transform = tirx.transform
    passes = [
        transform.BindTarget(device),
        s_tir.transform.StmtSimplify(),
        transform.FlattenBuffer(),
        transform.NarrowDataType(32),
        transform.UnrollLoop(),
        transform.StmtSimplify(),
        transform.RemoveNoOp(),
        transform.CommonSubexprElim(),
        transform.LowerIntrin(),
    ]
    lowered = tvm.ir.transform.Sequential(passes)(module)
    kernels = {name: _kernel(lowered[name]) for name in functions}
    text: str = tvm_ffi.get_global_func("target.build.cuda")(tvm.IRModule(kernels), device).inspect_source()
    # What TVM writes before the first kernel is for headers of the toolkit, which these sources do without.
    return header(HEADERS) + text[text.index(_FIRST_KERNEL) :]


def _kernel(func: tirx.PrimFunc) -> tirx.PrimFunc:
    return func.with_attr("calling_conv", _DEVICE_KERNEL).with_attr("tirx.is_global_func", True)


def header(names: tuple[str, ...]) -> str:
    """The text of files of ``device/``, one after another."""
    folder = resources.files("qcc_targets.cuda") / "device"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names) + "\n"

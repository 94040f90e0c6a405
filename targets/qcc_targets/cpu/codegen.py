"""TensorIR modules to object files, in this process; ``compiler`` runs it in a child."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import tvm
from tvm import s_tir, tirx
from tvm.tirx.build import tir_to_runtime

from qcc.errors import TargetError
from qcc_targets.cpu.kernel import PLAIN

_PASSES = tirx.transform

_FLOAT: Final = re.compile(r"\b(half|bfloat|float|double|fp128|x86_fp80)\b")
_RUNTIME_HELPERS: Final = ("@__truncsfhf2", "@__extendhfsf2", "@llvm.fabs.")
"""What TVM puts into every module, unused: conversions of half precision, which the linker drops."""


def _lowering() -> list[Any]:
    """Every function keeps the C calling convention of its parameters: TVM's own needs TVM's runtime."""
    return [
        s_tir.transform.StmtSimplify(),
        _PASSES.FlattenBuffer(),
        _PASSES.NarrowDataType(32),
        _PASSES.VectorizeLoop(True),
        _PASSES.StorageRewrite(),
        _PASSES.UnrollLoop(),
        _PASSES.StmtSimplify(),
        _PASSES.RemoveNoOp(),
        _PASSES.CommonSubexprElim(),
        _PASSES.LowerTVMBuiltin(),
        _PASSES.LowerIntrin(),
    ]


def _lowered(module: tvm.IRModule) -> tvm.IRModule:
    """``module`` ready for LLVM. Functions marked ``PLAIN`` hold little that TensorIR's passes are for."""
    plain = {name: f for name, f in module.functions.items() if f.attrs and PLAIN in f.attrs}
    rest = {name: f for name, f in module.functions.items() if name not in plain}
    done = tvm.ir.transform.Sequential(_lowering())(tvm.IRModule(rest)) if rest else tvm.IRModule({})
    if plain:
        short = [_PASSES.LowerTVMBuiltin(), _PASSES.LowerIntrin()]
        done.update(tvm.ir.transform.Sequential(short)(tvm.IRModule(plain)))
    return done


def compile_object(module: tvm.IRModule, target: dict[str, Any], path: Path, *, floats: bool = False) -> None:
    """Write the object file of ``module`` for ``target``.

    Raises TargetError when it computes with floats, unless these are allowed.
    """
    device = tvm.target.Target(target)
    lowered = _lowered(_PASSES.BindTarget(device.with_host(device))(module))
    built = tir_to_runtime(lowered, {}, device)
    if not floats and (found := float_values(built.inspect_source("ll"))):
        raise TargetError(f"a kernel computes with floating point: {found[0]}")
    built.write_to_file(str(path))


def float_values(llvm: str) -> list[str]:
    """The lines of LLVM assembly text that name a floating-point type, TVM's unused helpers apart."""
    found = []
    inside_helper = False
    for line in llvm.splitlines():
        if line.startswith(("define ", "declare ")):
            inside_helper = any(name in line for name in _RUNTIME_HELPERS)
        text = line.split(";", 1)[0]
        if not inside_helper and not text.lstrip().startswith(("!", "#", "@", "attributes")) and _FLOAT.search(text):
            found.append(line.strip())
        if line.startswith("}"):
            inside_helper = False
    return found

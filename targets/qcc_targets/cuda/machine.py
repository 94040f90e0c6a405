"""What of the CUDA target's surroundings this machine has, found by doing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Final

from qcc.errors import QccError
from qcc.passmgr.target import Program
from qcc.runtime import cuda_driver
from qcc.runtime.cuda_driver import Driver
from qcc_targets.cuda.compiler import compile_image, find_nvrtc, version
from qcc_targets.cuda.disassembly import find_disassembler
from qcc_targets.cuda.simt.library import COMPILER

_KERNEL: Final = 'extern "C" __global__ void trial(int *x) { x[threadIdx.x] += 1; }'


def programs(architectures: Sequence[str]) -> list[Program]:
    """The compiler with those of ``architectures`` that it compiles for, the driver with its GPU, and the judges."""
    compiles = [arch for arch in architectures if _works(lambda arch=arch: compile_image(_KERNEL, arch))]  # type: ignore[misc]
    return [
        Program(
            name="NVRTC" if not compiles else "NVRTC {}.{}".format(*version()),
            purpose=f"compiles for {', '.join(compiles) or 'GPUs'}",
            install="pip install 'qcc[cuda]'",
            path=str(find_nvrtc()._name) if compiles else None,
        ),
        _driver(),
        Program("g++", "runs kernels on the host: --device simt", "install g++", shutil.which(COMPILER)),
        Program(
            "nvdisasm",
            "shows the machine code",
            "pip install nvidia-cuda-nvdisasm",
            find_disassembler() if _works(find_disassembler) else None,
        ),
    ]


def _driver() -> Program:
    install = "install NVIDIA's driver"
    try:
        driver = Driver()
    except QccError:  # which, the trial of the target tells
        return Program(cuda_driver.LIBRARY, "runs artifacts", install, None)
    major, minor = divmod(driver.version, 1000)
    purpose = f"runs artifacts on {driver.name} (sm_{driver.capability}), for CUDA {major}.{minor // 10}"
    return Program(cuda_driver.LIBRARY, purpose, install, cuda_driver.LIBRARY)


def _works(work: Callable[[], object]) -> bool:
    try:
        work()
    except QccError:
        return False
    return True

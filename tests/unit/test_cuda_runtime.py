"""The CUDA runtime against a driver that is none: what it calls, and what it says when something is missing."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc.errors import ArtifactError, ConfigError, QccError
from qcc.passmgr.context import PassContext
from qcc.runtime import cuda_driver
from qcc.runtime.cuda_backend import CudaBackend
from qcc.runtime.cuda_network import choose
from qcc.runtime.cuda_program import CUDA_PROGRAM, Image
from qcc.trial import small_graph, write_trial
from qcc_targets.cuda.machine import programs
from qcc_targets.cuda.target import CudaTarget

FAKE = Path(__file__).with_name("fake_cuda.c")
Install = Callable[..., ctypes.CDLL]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Compiles the fake driver with other values than these, and puts it in the place of the real one."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler")

    def build(**given: int) -> ctypes.CDLL:
        values = {"INIT": 0, "DEVICES": 2, "MAJOR": 8, "MINOR": 6, "MEMORY": 1 << 30} | given
        path = tmp_path / f"libfake{len(list(tmp_path.iterdir()))}.so"
        defined = [f"-D{name}={value}" for name, value in values.items()]
        subprocess.run([compiler, "-shared", "-fPIC", "-w", *defined, "-o", path, FAKE], check=True)
        monkeypatch.setattr(cuda_driver, "LIBRARY", str(path))
        return ctypes.CDLL(str(path))

    return build


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense layer for four samples, in machine code for one architecture."""
    out = tmp_path_factory.mktemp("cuda")
    built = CudaTarget(arch=("sm_80",), batch=4).build(small_graph(), PassContext(), out)
    return {f"device/{path.name}": path for path in built}


def backend(files: dict[str, Path], **options: Any) -> CudaBackend:
    none: Any = None
    return CudaBackend(none, files, 1, **options)


def test_one_graph_launch_per_batch(files: dict[str, Path], install: Install) -> None:
    fake = install()
    b = backend(files, device=1)
    kernels = ctypes.c_int.in_dll(fake, "fake_kernels").value
    assert kernels == 2 * len(b.program.launches) > 0  # once to load them, once to capture them
    y = b.run({"x": np.zeros((9, 16), np.uint8)}, 9)["y"]
    assert y.shape == (9, 8) and y.dtype == np.uint8
    assert ctypes.c_int.in_dll(fake, "fake_graphs").value == 3
    assert ctypes.c_int.in_dll(fake, "fake_kernels").value == kernels
    assert b.network.driver.name == "Fake GPU"


def test_device_memory_is_given_back(files: dict[str, Path], install: Install) -> None:
    fake = install()
    blocks = ctypes.c_int.in_dll(fake, "fake_blocks")
    b = backend(files)
    assert blocks.value == 4  # arena, constants, one input, one output
    arena = b.program.arena
    del b
    gc.collect()
    assert blocks.value == 0
    fake = install(MEMORY=arena + 1)
    blocks = ctypes.c_int.in_dll(fake, "fake_blocks")
    with pytest.raises(QccError, match="out of device memory"):
        backend(files)
    gc.collect()
    assert blocks.value == 0


def test_layers_are_timed_on_the_gpu(tmp_path: Path, install: Install) -> None:
    fake = install()
    target = CudaTarget(arch=("sm_80",))
    assert target.device() == 'cuda{arch=["sm_80"]} on Fake GPU'
    write_trial(small_graph(), target, tmp_path / "small.qcc")
    kernels = ctypes.c_int.in_dll(fake, "fake_kernels")
    assert target.time_layers(tmp_path / "small.qcc") == {"y": pytest.approx(6e-3 / 50)}
    assert kernels.value > 50


def test_no_driver(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libnosuchdriver.so.1")
    with pytest.raises(ArtifactError, match=r"^no NVIDIA driver: libnosuchdriver.so.1 does not load"):
        backend(files)


@pytest.mark.parametrize(
    ("driver", "options", "error", "message"),
    [
        ({"INIT": 100}, {}, ArtifactError, r"^no NVIDIA GPU: .*no CUDA-capable device is detected"),
        ({"DEVICES": 0}, {}, ArtifactError, r"^no NVIDIA GPU: the driver finds no device"),
        ({}, {"device": 2}, ConfigError, r"^no CUDA device 2: this machine has 2, numbered from 0"),
        ({}, {"device": -1}, ConfigError, r"^no CUDA device -1"),
        ({"MAJOR": 9, "MINOR": 0}, {}, ArtifactError, r"^this GPU is sm_90, and the artifact holds code for sm_80"),
        ({"MAJOR": 7, "MINOR": 5}, {}, ArtifactError, r"^this GPU is sm_75"),
        ({"MEMORY": 100}, {}, QccError, r"^out of device memory: .* compile for a smaller batch"),
    ],
)
def test_what_is_missing_is_told_in_one_line(
    driver: dict[str, int],
    options: dict[str, int],
    error: type[QccError],
    message: str,
    files: dict[str, Path],
    install: Install,
) -> None:
    install(**driver)
    with pytest.raises(error, match=message) as caught:
        backend(files, **options)
    assert type(caught.value) is error and "\n" not in str(caught.value)


def test_a_damaged_image_is_refused(files: dict[str, Path], install: Install, tmp_path: Path) -> None:
    install()
    (tmp_path / "network-sm_80.cubin").write_bytes(b"none")
    with pytest.raises(ArtifactError, match=r"^the driver refuses network-sm_80.cubin"):
        backend({**files, "device/network-sm_80.cubin": tmp_path / "network-sm_80.cubin"})


def test_a_missing_file_is_named(files: dict[str, Path], install: Install) -> None:
    install()
    for name in (CUDA_PROGRAM, "network-sm_80.cubin", "constants.bin"):
        with pytest.raises(ArtifactError, match=f"holds no device/{name}"):
            backend({path: file for path, file in files.items() if not path.endswith(name)})


@pytest.mark.parametrize(
    ("capability", "chosen"), [(75, "sm_75"), (80, "sm_80"), (86, "sm_80"), (90, "compute_80"), (120, "compute_80")]
)
def test_machine_code_of_the_generation_comes_before_text(capability: int, chosen: str) -> None:
    images = [Image(arch=arch, file="f") for arch in ("sm_75", "sm_80", "sm_89", "compute_80")]
    assert choose(images, capability).arch == chosen


def test_the_doctor_is_told_what_compiles_and_what_runs(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(MAJOR=9, MINOR=0)
    found = {program.name.partition(" ")[0]: program for program in programs(("sm_80", "sm_90", "sm_121", "sm_999"))}
    assert list(found) == ["NVRTC", cuda_driver.LIBRARY, "g++", "nvdisasm"]
    assert found["NVRTC"].purpose == "compiles for sm_80, sm_90, sm_121"
    assert found[cuda_driver.LIBRARY].purpose == "runs artifacts on Fake GPU (sm_90), for CUDA 12.9"
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libnosuchdriver.so.1")
    assert programs(())[1].path is None and programs(())[0].path is None

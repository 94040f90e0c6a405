"""The target ``cuda``: machine code for several architectures, constants, and the list of launches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import BeforeValidator, Field, field_validator

from qcc.artifact.store import read_artifact
from qcc.errors import ArtifactError
from qcc.ir.graph import Graph
from qcc.passmgr.context import PassContext
from qcc.passmgr.spelling import spell
from qcc.passmgr.target import NARROW_BITS, Capabilities, Program, Target
from qcc.runtime.cuda_backend import CudaBackend
from qcc.runtime.cuda_driver import Driver
from qcc.runtime.cuda_program import CUDA_PROGRAM, CudaProgram, Image
from qcc_targets.cpu.child import Limits
from qcc_targets.cpu.lowering import MOVES
from qcc_targets.cpu.select import GENERIC
from qcc_targets.cpu.target import LAYERS, argument, listed
from qcc_targets.cuda.compiler import compile_images, find_nvrtc
from qcc_targets.cuda.machine import programs
from qcc_targets.cuda.network import assemble
from qcc_targets.cuda.source import cuda_source

SOURCE: Final = "network.cu"
CONSTANTS: Final = "constants.bin"
_REPEATS: Final = 50
"""Launches of a kernel whose mean is its time."""

ARCHITECTURES: Final = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "compute_90")
"""What the source is compiled for by default: the last is text that the drivers of later GPUs translate."""


class CudaTarget(Target):
    """NVIDIA GPUs from Turing on, through TVM and NVRTC: one CUDA graph launch per inference.

    ``arch`` lists architectures: ``sm_90`` is machine code for one, ``compute_90`` text (PTX) that the driver
    translates for later ones. ``batch`` samples are computed per launch. Neither a GPU nor a driver is
    needed to compile. A compiling process may take ``seconds`` of processor time and ``memory_mib`` of memory.
    """

    name: ClassVar[str] = "cuda"
    backend: ClassVar[str] = "cuda"

    arch: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] = ARCHITECTURES
    batch: int = Field(default=1, ge=1, le=1024)
    seconds: int = Field(default=600, ge=1)
    memory_mib: int = Field(default=8192, ge=512)

    @field_validator("arch")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for arch in value:
            kind, _, number = arch.partition("_")
            if kind not in ("sm", "compute") or not number.isdecimal() or not 75 <= int(number) <= 121:
                raise ValueError(
                    f"unknown architecture '{arch}'; such as sm_75, sm_80, sm_86, sm_89, sm_90, compute_90"
                )
        return tuple(dict.fromkeys(value))

    @property
    def capabilities(self) -> Capabilities:
        ops = frozenset(GENERIC) | frozenset(MOVES)
        return Capabilities(ops=ops, weight_bits=NARROW_BITS, activation_bits=NARROW_BITS | {16})

    def device(self) -> str:
        """See ``Target.device``: the GPU where there is one, else this machine's processor, which compiles for it."""
        try:
            gpu = Driver().name
        except ArtifactError:
            return super().device()
        return f"{spell(self.name, self.model_dump(mode='json', exclude_defaults=True))} on {gpu}"

    def time_layers(self, artifact: Path) -> dict[str, float]:
        """See ``Target.time_layers``: each kernel alone, many times in a row. Raises ArtifactError without a GPU."""
        opened = read_artifact(artifact)
        network = CudaBackend(opened.manifest, opened.files, 1).network
        times: dict[str, float] = {}
        for launch, seconds in zip(network.program.launches, network.launch_seconds(_REPEATS), strict=True):
            if launch.op in LAYERS:
                times[launch.result] = times.get(launch.result, 0.0) + seconds
        return times

    def programs(self) -> Sequence[Program]:
        """See ``Target.programs``."""
        return programs(self.arch)

    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        find_nvrtc()
        ctx.progress("kernels", 0, 1)
        network = assemble(graph, self.batch)
        source = cuda_source(network.functions)
        images = tuple(Image(arch=arch, file=_file(arch)) for arch in self.arch)
        limits = Limits(self.seconds, self.memory_mib << 20, ctx.threads)
        compile_images(source, [(image.arch, out / image.file) for image in images], limits)
        ctx.progress("kernels", 1, 1)
        program = CudaProgram(
            batch=self.batch,
            inputs=tuple(argument(v, self.batch) for v in graph.inputs),
            outputs=tuple(argument(v, self.batch) for v in graph.outputs),
            launches=network.launches,
            arena=network.arena,
            constants=CONSTANTS,
            source=SOURCE,
            images=images,
        )
        (out / SOURCE).write_text(source)
        (out / CONSTANTS).write_bytes(network.constants)
        (out / CUDA_PROGRAM).write_bytes(program.to_bytes())
        return sorted(out.iterdir())


def _file(arch: str) -> str:
    return f"network-{arch}.{'cubin' if arch.startswith('sm_') else 'ptx'}"

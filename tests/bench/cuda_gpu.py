# ruff: noqa: T201 - a measurement prints
"""All that is to be measured on a GPU, in one run: equal bits, latency, throughput, and each layer's share of the peak.

    python tests/bench/cuda_gpu.py [--device 0] [--batch 1,8,64,256] [--peers onnxruntime-gpu,torch] [NETWORK ...]

Needs NVIDIA's driver, this repository and its wheels; the networks have published shapes and random weights. Each is
compiled for the GPU's architecture and every batch. All outputs of a batch are compared with the numpy reference
(on ``--samples`` images, repeated to fill the batch). ``call`` is the median of a Python call from host memory to
host memory, of all engines in interleaved turns; ``device`` the mean with inputs and outputs in device memory, one CUDA
graph a call. Peers that are missing are said to be. ``--device simt`` tries the script itself without a GPU, on small
networks: its times are the host's. Exits with 8 where an element differs, with 7 where there is no GPU.
The real models, where they are at hand: ``cuda_models.py --device 0``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnx
import resnets
from exactness import qcc
from latency import QUICK, choices
from numpy.typing import NDArray

from qcc.artifact.border import quantize_input
from qcc.artifact.contents import read_graph
from qcc.artifact.store import read_artifact
from qcc.bench.ort_gpu_peer import OrtGpuPeer, in_half_precision, with_batch
from qcc.bench.peers import quantized_by_onnxruntime
from qcc.bench.timing import measure
from qcc.bench.torch_peer import TorchPeer
from qcc.errors import QccError
from qcc.ir.graph import Graph
from qcc.runtime import Session
from qcc.runtime.cuda_backend import CudaBackend
from qcc.runtime.cuda_driver import Driver
from qcc.verify.interp import evaluate

NETWORKS: Final[Mapping[str, Callable[[], onnx.ModelProto]]] = {
    "resnet50": partial(resnets.resnet, "resnet50"),
    "mobilenet_v2": resnets.mobilenet_v2,
    "resnet20": resnets.resnet20,
    "tiny": partial(resnets.resnet20, blocks=1, size=16),
}
"""``tiny`` is for trying the script."""

PEERS: Final = ("onnxruntime-gpu", "torch")
PRODUCTS: Final = {75: 1024, 80: 2048, 86: 1024, 89: 1024, 90: 4096, 100: 8192, 120: 1024}
"""Dense int8 multiply-adds per cycle and multiprocessor on tensor cores, by compute capability (NVIDIA's papers)."""

REPEATS: Final = 50
ROUNDS: Final = 15
QCC: Final = "qcc int8"
HEAD: Final = f"{'network':14} {'batch':>5}  {'engine':22} {'call ms':>9} {'device ms':>9} {'images/s':>9} {'x qcc':>6}"


class Engine(Protocol):
    def __call__(self) -> object: ...

    def seconds(self, repeats: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Ours:
    """The artifact on its device; ``seconds`` is 0 where nothing but the host runs it."""

    session: Session
    inputs: Mapping[str, NDArray[Any]]

    def __call__(self) -> object:
        return self.session.run(self.inputs)

    def seconds(self, repeats: int) -> float:
        backend = self.session.backend
        return backend.network.seconds(repeats) if isinstance(backend, CudaBackend) else 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    device: int | str
    arch: str
    peak: float
    peers: tuple[str, ...]
    samples: int
    rounds: int


def settings(device: str, peers: tuple[str, ...], samples: int, rounds: int) -> Settings:
    """What the device is; says it. Raises QccError where there is no GPU."""
    if not device.isdecimal():
        print(f"no GPU: the kernels run on the host (--device {device}); times say nothing about a GPU")
        return Settings(device, "compute_75", 0.0, peers, samples, rounds)
    driver = Driver(int(device))
    products = PRODUCTS.get(driver.capability, 0)
    peak = 2 * products * driver.cycles
    major, minor = divmod(driver.version, 1000)
    rate = f"{peak / 1e12:.0f} TOPS at its highest clock" if peak else "unknown"
    print(f"{driver.name}, sm_{driver.capability}, CUDA {major}.{minor // 10}, int8 peak {rate}")
    return Settings(int(device), f"sm_{driver.capability}", peak, peers, samples, rounds)


def compiled(name: str, batch: int, arch: str, folder: Path) -> tuple[Path, Path, NDArray[Any]]:
    """The ONNX file, the artifact for ``batch``, and images."""
    model, data, artifact = folder / f"{name}.onnx", folder / f"{name}.npz", folder / f"{name}-{batch}.qcc"
    if not model.exists():
        onnx.save(NETWORKS[name](), model)
    proto = onnx.load(model, load_external_data=False)
    size = proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    found = resnets.images(8, size=size)
    arrays: dict[str, Any] = {resnets.INPUT: found}
    np.savez(data, **arrays)
    target = ("-t", "cuda", "-O", f"arch={arch}", "-O", f"batch={batch}")
    made = qcc("compile", str(model), "-d", str(data), "-o", str(artifact), *target, "--pipeline", QUICK, "--force")
    print(f"compiled {artifact.name} for {arch}: build {made['seconds']['build']:.1f} s", flush=True)
    return model, artifact, found


def differing(graph: Graph, session: Session, images: NDArray[Any], batch: int) -> tuple[int, int]:
    """Elements compared and elements that differ, over a whole batch."""
    count = len(images)
    (spec,) = session.inputs
    codes = quantize_input(spec, images)
    expected = evaluate(graph, {spec.name: codes})
    order = np.arange(batch) % count
    got = session.run({spec.name: codes[order]}, raw=True)
    pairs = [(got[name], expected[name][order]) for name in got]
    return sum(a.size for a, _ in pairs), sum(int((a != b).sum()) for a, b in pairs)


def peers(model: Path, images: NDArray[Any], s: Settings, batch: int, folder: Path) -> Iterator[tuple[str, Engine]]:
    """Those that run here; the others are said to be missing."""
    inputs = {resnets.INPUT: images[np.arange(batch) % len(images)]}
    device = s.device if isinstance(s.device, int) else 0

    def int8() -> Engine:
        whole = quantized_by_onnxruntime(model, [{resnets.INPUT: images}], folder)
        return OrtGpuPeer(with_batch(whole, batch, folder), inputs, device)

    wanted: list[tuple[str, str, Callable[[], Engine]]] = [
        ("onnxruntime-gpu", "onnxruntime-gpu int8", int8),
        (
            "onnxruntime-gpu",
            "onnxruntime-gpu fp16",
            lambda: OrtGpuPeer(in_half_precision(model, batch, folder), inputs, device),
        ),
        ("torch", "torch fp16", lambda: TorchPeer(model, inputs, device)),
    ]
    for peer, name, make in wanted:
        if peer in s.peers:
            try:
                yield name, make()
            except Exception as e:  # whatever a peer raises, the rest is to be measured
                print(f"{name}: not measured: {' '.join(str(e).split())[:160]}", flush=True)


def table(name: str, batch: int, engines: Mapping[str, Engine], rounds: int) -> None:
    """Print a row per engine."""
    print(HEAD)
    calls = measure(engines, rounds)
    for engine, run in engines.items():
        seconds = run.seconds(REPEATS)
        call = calls[engine].median
        ratio = call / calls[QCC].median
        cells = f"{1e3 * seconds:9.3f} {batch / seconds:9.0f}" if seconds else f"{'–':>9} {'–':>9}"
        print(f"{name:14} {batch:5}  {engine:22} {1e3 * call:9.3f} {cells} {ratio:6.2f}", flush=True)


def operations(graph: Graph, batch: int) -> dict[str, int]:
    """Multiplications and additions of each convolution and dense layer, by its result."""
    found = {}
    for o in graph.ops:
        if o.kind in ("iconv2d", "idense"):
            weights = o.operands[1].type.shape
            places = int(np.prod(o.result.type.shape[2:])) if o.kind == "iconv2d" else 1
            found[o.result.name] = 2 * batch * places * int(np.prod(weights))
    return found


def layers(graph: Graph, session: Session, batch: int, peak: float) -> None:
    """Print each layer's time alone, and its share of the peak; nothing without a GPU."""
    backend = session.backend
    if not isinstance(backend, CudaBackend):
        return
    work = operations(graph, batch)
    print(f"  {'layer':28} {'kernel':24} {'us':>8} {'TOPS':>7} {'of peak %':>9}")
    for launch, seconds in zip(backend.program.launches, backend.network.launch_seconds(REPEATS), strict=True):
        if launch.op in ("iconv2d", "idense") and launch.result in work:
            rate = work[launch.result] / seconds
            share = f"{100 * rate / peak:9.1f}" if peak else f"{'–':>9}"
            print(f"  {launch.result[:28]:28} {launch.template:24} {1e6 * seconds:8.1f} {rate / 1e12:7.1f} {share}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--device", default="0", help="the GPU's number, or simt")
    parser.add_argument("--batch", default="1,8,64,256")
    parser.add_argument("--peers", default=",".join(PEERS), help="'' for none")
    parser.add_argument("--samples", type=int, default=4, help="images for the comparison of bits, at most 8")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    names = [n for n in chosen.networks or list(NETWORKS)[:3] if choices(n, list(NETWORKS))]
    wanted = tuple(choices(chosen.peers, PEERS)) if chosen.peers else ()
    batches = [int(b) for b in choices(chosen.batch)]
    try:
        s = settings(chosen.device, wanted, min(chosen.samples, 8), chosen.rounds)
    except QccError as e:
        print(
            f"{e}: nothing is measured here; run it on a machine with a GPU, or try --device simt tiny", file=sys.stderr
        )
        sys.exit(e.exit_code)
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in names:
            for batch in batches:
                wrong += judge(name, batch, s, folder)
    if wrong:
        sys.exit(8)


def judge(name: str, batch: int, s: Settings, folder: Path) -> int:
    """Measure one network at one batch; how many elements differ."""
    model, artifact, images = compiled(name, batch, s.arch, folder)
    opened = read_artifact(artifact)
    graph = read_graph(opened.files)
    session = Session(opened, device=s.device)
    elements, wrong = differing(graph, session, images[: s.samples], batch)
    print(f"{name}, batch {batch}: {wrong} of {elements} elements differ from the numpy reference", flush=True)
    inputs = {resnets.INPUT: images[np.arange(batch) % len(images)]}
    engines: dict[str, Engine] = {QCC: Ours(session, inputs), **dict(peers(model, images, s, batch, folder))}
    table(name, batch, engines, s.rounds)
    layers(graph, session, batch, s.peak)
    return wrong


if __name__ == "__main__":
    main()

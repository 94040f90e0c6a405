"""Data from users: .npz files, folders of images, Python functions."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qcc.config import DataConfig, Layout
from qcc.errors import ConfigError
from qcc.ir.graph import Graph
from qcc.passmgr.facts import CalibrationData

LABELS: Final = "labels"
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class Dataset:
    """Arrays [samples, …] by input name, as the user gave them; ``labels`` [samples] where there are any."""

    arrays: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None = None
    notes: tuple[str, ...] = ()


def load_data(config: DataConfig, shapes: Mapping[str, tuple[int, ...]], *, raw_bytes: bool = False) -> Dataset:
    """The data that ``config`` names, at most ``config.samples`` of it.

    ``shapes`` are those of the inputs, -1 standing for the batch; images are resized to fit them.
    With ``raw_bytes`` images stay uint8 and are not normalized. Names and shapes of arrays are
    not checked here. Raises ConfigError.
    """
    path = Path(config.path)
    if path.suffix == ".npz":
        data = _from_npz(path)
    elif path.is_dir():
        data = _from_images(path, config, shapes, raw_bytes)
    elif ":" in config.path:
        data = _from_function(config.path)
    else:
        why = "is neither .npz, a folder of images, nor module:function" if path.exists() else "does not exist"
        raise ConfigError(f"data {config.path} {why}")
    return _limited(data, config.samples)


def as_calibration(data: Dataset, graph: Graph) -> CalibrationData:
    """``data`` in the element types of ``graph``'s inputs, checked. Raises ConfigError."""
    types = {v.name: v.type.numpy for v in graph.inputs}
    raw = CalibrationData(data.arrays, data.labels)
    raw.check(graph)
    with np.errstate(over="ignore"):  # what overflows float32 is found by the second check
        arrays = {name: np.ascontiguousarray(a, types[name]) for name, a in data.arrays.items()}
    typed = CalibrationData(arrays, data.labels, _digest(arrays))
    typed.check(graph)
    return typed


def as_bytes(data: Dataset, graph: Graph) -> Dataset:
    """``data`` that stand for bytes, images in the layout of ``graph``'s inputs whichever they came in.

    Raises ConfigError where something else than whole numbers 0 … 255 is among them.
    """
    for name, array in data.arrays.items():
        if array.dtype.kind not in "fiub" or not np.all((array >= 0) & (array <= 255) & (array == np.rint(array))):
            raise ConfigError(f"data array '{name}' must hold bytes, whole numbers from 0 to 255, for uint8 inputs")
    shapes = {v.name: v.type.shape for v in graph.inputs}
    turned = {name: _turned(a, shapes[name]) if name in shapes else a for name, a in data.arrays.items()}
    return replace(data, arrays=turned)


def _turned(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A batch of images in the other layout where only that one fits ``shape``."""
    if array.ndim == 4 and array.shape[1:] != shape[1:]:
        for other in (array.transpose(0, 3, 1, 2), array.transpose(0, 2, 3, 1)):
            if other.shape[1:] == shape[1:]:
                return other
    return array


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}:{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _limited(data: Dataset, samples: int | None) -> Dataset:
    for name, array in data.arrays.items():
        if array.ndim == 0:
            raise ConfigError(f"data array '{name}' is a single number; its first axis must be the samples")
    counts = {name: len(array) for name, array in data.arrays.items()}
    if data.labels is not None:
        counts[LABELS] = len(data.labels)
    if len(set(counts.values())) > 1:
        raise ConfigError(f"data arrays differ in length: {', '.join(f'{k} {n}' for k, n in counts.items())}")
    labels = None if data.labels is None else data.labels[:samples]
    return Dataset({name: array[:samples] for name, array in data.arrays.items()}, labels, data.notes)


def _from_npz(path: Path) -> Dataset:
    if not path.is_file():
        raise ConfigError(f"data {path} does not exist")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one nameless array; save it with numpy.savez")
            return _from_mapping({name: archive[name] for name in archive.files}, str(path))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as e:
        raise ConfigError(f"data {path} cannot be read: {str(e) or type(e).__name__}") from e


def _from_mapping(arrays: Mapping[str, NDArray[Any]], where: str) -> Dataset:
    inputs = {name: array for name, array in arrays.items() if name != LABELS}
    labels = arrays.get(LABELS)
    if not inputs:
        raise ConfigError(f"data {where} holds no arrays")
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise ConfigError(f"data {where}: 'labels' must be integers [samples], got {labels.dtype}{list(labels.shape)}")
    return Dataset(inputs, labels)


def _from_function(spelling: str) -> Dataset:
    module, _, name = spelling.rpartition(":")
    function = _find_function(module, name)
    try:
        result = function()
    except Exception as e:
        raise ConfigError(f"data {spelling} raised {type(e).__name__}: {e}") from e
    if not isinstance(result, Mapping) or not all(isinstance(k, str) for k in result):
        raise ConfigError(f"data {spelling} returned {type(result).__name__}; a dict of arrays by input name is needed")
    return _from_mapping({k: np.asarray(a) for k, a in result.items()}, spelling)


def _find_function(module: str, name: str) -> Callable[[], object]:
    """``name`` of an importable module (also one in the working directory), or of a .py file."""
    try:
        if module.endswith(".py"):
            found = _import_file(Path(module))
        else:
            sys.path.insert(0, str(Path.cwd()))
            try:
                found = importlib.import_module(module)
            finally:
                sys.path.pop(0)
    except Exception as e:
        raise ConfigError(f"data {module}:{name} does not load: {type(e).__name__}: {e}") from e
    function = getattr(found, name, None)
    if not callable(function):
        raise ConfigError(f"data {module}:{name}: the module has no function '{name}'")
    return function  # type: ignore[no-any-return]


def _import_file(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_images(root: Path, config: DataConfig, shapes: Mapping[str, tuple[int, ...]], raw_bytes: bool) -> Dataset:
    if len(shapes) != 1:
        raise ConfigError(f"data {root}: a folder of images serves models with one input; this one has {len(shapes)}")
    ((name, shape),) = shapes.items()
    layout = config.layout or image_layout(name, shape)
    channels, height, width = _image_axes(name, shape, layout)
    images: list[NDArray[Any]] = []
    skipped: list[str] = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        if config.samples is not None and len(images) == config.samples:
            break
        pixels = _decode(path, _MODES[channels], (width, height))
        if pixels is None:
            skipped.append(path.relative_to(root).as_posix())
            continue
        image = pixels.reshape(height, width, channels)
        real = image if raw_bytes else _normalized(image, config)
        images.append(real if layout == "NHWC" else real.transpose(2, 0, 1))
    if not images:
        raise ConfigError(f"data {root}: holds no image that can be read")
    return Dataset({name: np.stack(images)}, notes=_skipped_note(root, skipped))


def _skipped_note(root: Path, skipped: Sequence[str]) -> tuple[str, ...]:
    if not skipped:
        return ()
    more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return (f"data {root}: skipped {len(skipped)} file(s) that are no images: {', '.join(skipped[:3])}{more}",)


def _decode(path: Path, mode: str, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """The image at ``path`` resized to ``size``, or None where it cannot be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return np.asarray(image.convert(mode).resize(size, Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def _normalized(image: NDArray[np.uint8], config: DataConfig) -> NDArray[np.float32]:
    channels = image.shape[2]
    for field, values in (("mean", config.mean), ("std", config.std)):
        if len(values) not in (1, channels):
            raise ConfigError(f"data: {field} has {len(values)} values for images of {channels} channels")
    real: NDArray[np.float64] = (image * np.float64(config.scale) - np.array(config.mean)) / np.array(config.std)
    return real.astype(np.float32)


def image_layout(name: str, shape: tuple[int, ...]) -> Layout:
    """The layout that an image input's ``shape`` suggests. Raises ConfigError where it is no image."""
    if len(shape) == 4:
        for channels in ((1, 3), (4,)):
            if shape[1] in channels:
                return "NCHW"
            if shape[3] in channels:
                return "NHWC"
    raise ConfigError(f"input '{name}' of shape {list(shape)} takes no images: it has no axis of 1, 3 or 4 channels")


def _image_axes(name: str, shape: tuple[int, ...], layout: Layout) -> tuple[int, int, int]:
    """Channels, height and width."""
    if len(shape) != 4 or shape[1 if layout == "NCHW" else 3] not in _MODES:
        raise ConfigError(f"input '{name}' of shape {list(shape)} takes no {layout} images of 1, 3 or 4 channels")
    return (shape[1], shape[2], shape[3]) if layout == "NCHW" else (shape[3], shape[1], shape[2])

"""Data from users, good and bad."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qcc.config import DataConfig
from qcc.data import Dataset, as_calibration, image_layout, load_data
from qcc.errors import ConfigError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph
from qcc.ir.types import BATCH

SHAPES = {"x": (BATCH, 3, 4, 6)}


def graph(shape: tuple[int, ...] = SHAPES["x"]) -> Graph:
    b = GraphBuilder("g")
    return b.graph([b.op("clip", [b.input("x", shape)], name="y", lo=0.0)])


def load(path: object, **fields: Any) -> Dataset:
    return load_data(DataConfig.model_validate({"path": str(path), **fields}), SHAPES)


def test_npz(tmp_path: Path) -> None:
    x = np.arange(5 * 72, dtype=np.float64).reshape(5, 3, 4, 6)
    np.savez_compressed(tmp_path / "d.npz", x=x, labels=np.arange(5))
    data = load(tmp_path / "d.npz", samples=2)
    np.testing.assert_array_equal(data.arrays["x"], x[:2])
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, [0, 1])
    calibration = as_calibration(data, graph())
    assert calibration.arrays["x"].dtype == np.float32
    assert calibration.samples == 2
    assert len(calibration.digest) == 64
    assert calibration.digest != as_calibration(load(tmp_path / "d.npz"), graph()).digest


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((2, 3, 4, 6))}, "an array 'z', but the model's inputs are x"),
        ({"x": np.zeros((2, 3, 4, 6)), "extra": np.zeros(2)}, "an array 'extra'"),
        ({"x": np.zeros((2, 3, 4, 5))}, r"shape \(2, 3, 4, 5\)"),
        ({"x": np.zeros((3, 4, 6))}, r"shape \(3, 4, 6\)"),
        ({"x": np.zeros((0, 3, 4, 6))}, "holds no samples"),
        ({"x": np.zeros((2, 3, 4, 6), np.complex64)}, "dtype complex64"),
        ({"x": np.full((2, 3, 4, 6), "a")}, "dtype <U1"),
        ({"x": np.full((2, 3, 4, 6), np.nan)}, "NaN or infinity"),
        ({"x": np.full((2, 3, 4, 6), 1e300)}, "NaN or infinity"),
        ({"x": np.float64(3)}, "single number"),
        ({"x": np.zeros((2, 3, 4, 6)), "labels": np.zeros(3, int)}, "differ in length: x 2, labels 3"),
        ({"x": np.zeros((2, 3, 4, 6)), "labels": np.zeros(2)}, "'labels' must be integers"),
        ({"labels": np.zeros(2, int)}, "holds no arrays"),
        ({"x": np.array([{"a": 1}, None], object)}, "cannot be read: .*allow_pickle"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ConfigError, match=message) as caught:
        as_calibration(load(tmp_path / "d.npz"), graph())
    assert "\n" not in str(caught.value)


def test_bad_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with pytest.raises(ConfigError, match="does not exist"):
        load(path)
    np.savez(path, x=np.zeros((2, 3, 4, 6)))
    whole = path.read_bytes()
    for broken in (b"", b"no zip", whole[:-30], whole[:100]):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros((2, 3, 4, 6)))
    with pytest.raises(ConfigError, match="one nameless array"):
        load(path)
    for i in range(0, len(whole), 13):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
        try:
            load(path)
        except ConfigError:
            continue


def test_npz_that_claims_an_absurd_size(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "d.npz")


def test_other_paths(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "d.csv").write_text("1,2")
    with pytest.raises(ConfigError, match="is neither"):
        load(tmp_path / "d.csv")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name, colour in (("b/2.png", (0, 128, 255)), ("a.png", (10, 20, 30)), ("c.bmp", (1, 2, 3))):
        Image.new("RGB", (12, 8), colour).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:40])
    return folder


def test_images_are_sorted_resized_and_normalized(photos: Path) -> None:
    data = load(photos, scale=1 / 255, mean=[0.5, 0.25, 0.125], std=0.5)
    x = data.arrays["x"]
    assert x.shape == (3, 3, 4, 6)
    assert x.dtype == np.float32
    want = (np.array([[10, 20, 30], [0, 128, 255], [1, 2, 3]]) / 255 - [0.5, 0.25, 0.125]) / 0.5
    np.testing.assert_allclose(x[:, :, 0, 0], want, rtol=1e-6)
    assert data.notes == (f"data {photos}: skipped 2 file(s) that are no images: broken.png, notes.txt",)


def test_raw_images_stay_bytes(photos: Path) -> None:
    config = DataConfig(path=str(photos), samples=2, mean=(9.0,))
    data = load_data(config, {"x": (BATCH, 8, 12, 3)}, raw_bytes=True)
    assert data.arrays["x"].dtype == np.uint8
    np.testing.assert_array_equal(data.arrays["x"][:, 0, 0], [[10, 20, 30], [0, 128, 255]])


def test_grey_images(photos: Path) -> None:
    data = load_data(DataConfig(path=str(photos)), {"x": (1, 1, 4, 4)})
    assert data.arrays["x"].shape == (3, 1, 4, 4)


def test_images_need_an_image_input(photos: Path, tmp_path: Path) -> None:
    for shapes, message in (
        ({"x": (BATCH, 10)}, "takes no images"),
        ({"x": (BATCH, 7, 5, 5)}, "takes no images"),
        ({"x": SHAPES["x"], "y": SHAPES["x"]}, "one input; this one has 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_data(DataConfig(path=str(photos)), shapes)
    with pytest.raises(ConfigError, match="takes no NHWC images"):
        load(photos, layout="NHWC")
    with pytest.raises(ConfigError, match="mean has 2 values for images of 3 channels"):
        load(photos, mean=[1, 2])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no image that can be read"):
        load(tmp_path / "empty")
    assert image_layout("x", (BATCH, 4, 4, 3)) == "NHWC"


def module(path: Path, body: str) -> Path:
    path.write_text(f"import numpy as np\n\ndef data():\n    {body}\n")
    return path


def test_python_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = module(tmp_path / "my_data_source.py", "return {'x': np.ones((3, 3, 4, 6)), 'labels': [1, 2, 3]}")
    monkeypatch.chdir(tmp_path)
    for spelling in (f"{path}:data", "my_data_source:data"):
        data = load(spelling, samples=2)
        assert data.arrays["x"].shape == (2, 3, 4, 6)
        assert data.labels is not None
        assert data.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        ("return [1]", "data", "returned list; a dict of arrays"),
        ("return {1: np.ones(2)}", "data", "a dict of arrays"),
        ("raise OSError('disk on fire')", "data", "raised OSError: disk on fire"),
        ("return {}", "data", "holds no arrays"),
        ("return {}", "other", "has no function 'other'"),
        ("return (", "data", "does not load: SyntaxError"),
    ],
)
def test_bad_functions(tmp_path: Path, body: str, name: str, message: str) -> None:
    path = module(tmp_path / "source.py", body)
    with pytest.raises(ConfigError, match=message):
        load(f"{path}:{name}")


def test_missing_module() -> None:
    with pytest.raises(ConfigError, match="does not load: ModuleNotFoundError"):
        load("no_such_module_anywhere:data")

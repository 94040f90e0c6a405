"""Codes below 8 bits: packed densely, unpacked exactly, refused where they are not what packing gives."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from qcc.artifact.contents import GRAPH, PACKED, WEIGHTS, graph_files, read_graph
from qcc.errors import ArtifactError, VerifyError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, constants
from qcc.ir.packing import lowest, pack, packed_size, unpack
from qcc.ir.types import DTYPES, Dyadic, Quant


@given(st.data(), st.integers(2, 7), st.sampled_from(["i8", "u8"]), st.lists(st.integers(0, 7), max_size=3))
def test_round_trip(data: st.DataObject, bits: int, dtype: str, shape: list[int]) -> None:
    low = lowest(dtype, bits)
    count = int(np.prod(shape, dtype=int))
    codes = data.draw(st.lists(st.integers(low, low + (1 << bits) - 1), min_size=count, max_size=count))
    array = np.array(codes, DTYPES[dtype]).reshape(shape)
    packed = pack(array, bits)
    assert packed.shape == (packed_size(count, bits),)
    assert np.array_equal(unpack(packed, bits, tuple(shape), dtype), array)


def test_the_layout_is_one_little_endian_number() -> None:
    codes = np.array([-4, 3, -1, 0, 2, -3, 1, -2, 3], np.int8)
    number = sum(int(code + 4) << (3 * i) for i, code in enumerate(codes))
    assert pack(codes, 3).tobytes() == number.to_bytes(4, "little")
    assert pack(np.array([-8, 7], np.int8), 4).tolist() == [0xF0]


def test_codes_beyond_their_bits_are_refused() -> None:
    for codes, bits in (([8], 4), ([-9], 4), ([2], 2)):
        with pytest.raises(VerifyError, match="do not fit"):
            pack(np.array(codes, np.int8), bits)
    with pytest.raises(VerifyError, match="do not fit"):
        pack(np.array([16], np.uint8), 4)


@pytest.mark.parametrize(
    ("packed", "bits", "shape", "dtype", "message"),
    [
        ([0, 0], 4, (3,), "i8", None),
        ([0], 4, (3,), "i8", "take 2 bytes, not 1"),
        ([0, 0, 0], 4, (3,), "i8", "take 2 bytes, not 3"),
        ([0, 16], 4, (3,), "i8", "behind the last code"),
        ([0], 4, (1 << 40, 1 << 40), "i8", "take"),
        ([0], 9, (1,), "i8", "no packing"),
        ([0], 4, (1,), "i16", "no packing"),
    ],
)
def test_foreign_bytes(packed: list[int], bits: int, shape: tuple[int, ...], dtype: str, message: str | None) -> None:
    data = np.array(packed, np.uint8)
    if message is None:
        assert unpack(data, bits, shape, dtype).tolist() == [-8, -8, -8]
        return
    with pytest.raises(VerifyError, match=message):
        unpack(data, bits, shape, dtype)


def narrow_graph(bits: int, codes: np.ndarray) -> Graph:
    """A dense layer whose weights ``codes`` [O, K] lie on a grid of ``bits``."""
    b = GraphBuilder("narrow", Stage.INTEGER)
    unit = Quant(8, False, (Dyadic(1, 4),))
    x = b.input("x", (1, codes.shape[1]), "u8", unit)
    w = b.constant(codes, "w", quant=Quant(bits, True, (Dyadic(1, 7),) * len(codes), axis=0))
    m = b.constant(np.full(len(codes), 1 << 20, np.int32), "m")
    c = b.constant(np.full(len(codes), 1 << 31, np.int64), "c")
    return b.graph([b.op("idense", [x, w, m, c], quant=unit, shift=32, qmin=0, qmax=255)])


def written(files: dict[str, bytes], folder: Path) -> dict[str, Path]:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in files}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_artifacts_hold_packed_weights(bits: int, tmp_path: Path) -> None:
    low = lowest("i8", bits)
    codes = np.random.default_rng(bits).integers(low, -low, (9, 37)).astype(np.int8)
    files = graph_files(narrow_graph(bits, codes))
    assert files == graph_files(narrow_graph(bits, codes))
    stored = {a.dtype.name: a.nbytes for a in safetensors.numpy.load(files[WEIGHTS]).values()}
    assert sum(stored.values()) == (packed_size(codes.size, bits) if bits < 8 else codes.size)
    graph = read_graph(written(files, tmp_path))
    (read,) = (a for a in constants(graph).values() if a.shape == codes.shape)
    assert read.dtype == np.int8
    assert np.array_equal(read, codes)


def test_codes_off_their_grid_stay_bytes() -> None:
    codes = np.full((4, 8), 9, np.int8)
    (stored,) = safetensors.numpy.load(graph_files(narrow_graph(4, codes))[WEIGHTS]).values()
    assert stored.nbytes == codes.size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 8}, "bits"),
        ({"bits": 3}, "take 12 bytes, not 16"),
        ({"shape": [4, 9]}, "take 18 bytes, not 16"),
        ({"shape": [4, -8]}, "shape"),
        ({"dtype": "f32"}, "dtype"),
        ({"more": 1}, "more"),
    ],
)
def test_hostile_descriptions(change: dict[str, object], message: str, tmp_path: Path) -> None:
    files = graph_files(narrow_graph(4, np.ones((4, 8), np.int8)))
    arrays = safetensors.numpy.load(files[WEIGHTS])
    ((digest, data),) = arrays.items()
    form = {"dtype": "i8", "shape": [4, 8], "bits": 4, **change}
    for described, wanted in ({digest: form}, message), ({"0" * 64: form}, "holds no tensor|dtype|bits|shape|more"):
        files[WEIGHTS] = safetensors.numpy.save({digest: data}, {PACKED: json.dumps(described)})
        with pytest.raises(ArtifactError, match=wanted):
            read_graph(written({GRAPH: files[GRAPH], WEIGHTS: files[WEIGHTS]}, tmp_path))

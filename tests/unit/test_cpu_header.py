"""The C header of compiled libraries."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc_targets.cpu.header import write_header


def network() -> Graph:
    """Names that C does not take, a grid with a zero point, and codes without one."""
    b = GraphBuilder("my net-2", Stage.INTEGER)
    x = b.input("image:0", (BATCH, 3, 4, 5), "u8", Quant(8, False, (Dyadic.of(0.1),), 7))
    b.input("index", (6,), "i64")
    return b.graph([b.op("reduce_max", [x], axes=(2, 3), keepdims=False, quant=x.type.quant)])


def test_the_header_says_what_arrays_hold() -> None:
    text = write_header(network(), 2, {"uint8"})
    assert "in_image_0: uint8_t [2x3x4x5]" in text and "in_index: int64_t [6]" in text
    assert "#define QCC_MY_NET_2_IMAGE_0_SIZE 120" in text and "#define QCC_MY_NET_2_IMAGE_0_ZERO 7" in text
    assert "#define QCC_MY_NET_2_INDEX_SIZE 6" in text and "INDEX_SCALE" not in text
    assert "quantize_uint8" in text and "qcc_share" not in text
    assert "control is 640 zeroed bytes" in write_header(network(), 1, (), 640)


@pytest.mark.parametrize("language", ["c", "c++"])
def test_compilers_take_the_header(language: str, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    (tmp_path / "network.h").write_text(write_header(network(), 1, {"uint8", "int16"}, 128))
    (tmp_path / "main.c").write_text(
        '#include "network.h"\n#include "network.h"\n'
        "void *f = (void *)qcc_share; int64_t n = QCC_MY_NET_2_INDEX_SIZE + QCC_MY_NET_2_IMAGE_0_MIN;\n"
    )
    flags = ["-x", language, "-Wall", "-Werror", "-fsyntax-only"]
    done = subprocess.run(["cc", *flags, tmp_path / "main.c"], capture_output=True, text=True)
    if language == "c++" and "cc1plus" in done.stderr:
        pytest.skip("no C++ compiler here")
    assert done.returncode == 0, done.stderr

"""What users get wrong: one clear line on stderr, the documented exit code, and nothing half-written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcc.artifact.store import read_artifact
from qcc.errors import (
    ArtifactError,
    ConfigError,
    MismatchError,
    ModelError,
    ParseError,
    PluginError,
    QccError,
    TargetError,
)

Qcc = Callable[..., Any]
Arrays = dict[str, Any]


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A working folder with tiny.onnx and data.npz."""
    for name in ("tiny.onnx", "data.npz"):
        shutil.copy(tiny / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def compile_here(run_qcc: Qcc, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``qcc compile`` in ``folder``; must fail with the code of ``error``, in one line, leaving nothing behind."""
    monkeypatch.chdir(folder)

    def compile_(error: type[QccError], *arguments: object, model: str = "tiny.onnx", data: str = "data.npz") -> str:
        before = sorted(folder.rglob("*"))
        result = run_qcc("compile", model, "-d", data, "-t", "ref", "-o", "net.qcc", *arguments)
        assert result.code == error.exit_code, (result.code, result.err)
        assert sorted(folder.rglob("*")) == before
        assert result.out == ""
        complaint: str = result.complaint
        assert complaint.startswith("qcc: ")
        assert "Traceback" not in complaint
        return complaint

    return compile_


Compile = Callable[..., str]


# the model


def test_missing_model(compile_here: Compile) -> None:
    assert "nope.onnx" in compile_here(ModelError, model="nope.onnx")


@pytest.mark.parametrize("size", [0, 1, 50, 300])
def test_truncated_model(compile_here: Compile, folder: Path, size: int) -> None:
    path = folder / "tiny.onnx"
    path.write_bytes(path.read_bytes()[:size])
    assert "tiny.onnx" in compile_here(ModelError)


def test_model_that_is_no_model(compile_here: Compile, folder: Path) -> None:
    (folder / "tiny.onnx").write_text("this is not a model")
    assert "tiny.onnx" in compile_here(ModelError)


def edited(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / "tiny.onnx")
    change(model)
    onnx.save(model, folder / "tiny.onnx")


def test_unknown_operations_are_all_named(compile_here: Compile, folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[1].op_type = "Einsum"
        model.graph.node[2].domain = "com.acme"
        model.opset_import.append(helper.make_opsetid("com.acme", 1))

    edited(folder, change)
    complaint = compile_here(ModelError)
    assert "2 unsupported nodes" in complaint
    assert "Einsum" in complaint
    assert "com.acme" in complaint


def test_weights_that_are_not_finite(compile_here: Compile, folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
        weights[0, 0, 0, 0] = np.nan
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, model.graph.initializer[0].name))

    edited(folder, change)
    assert "NaN" in compile_here(ModelError)


def test_channels_that_are_all_zero_compile(run_qcc: Qcc, folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
        weights[1] = 0
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, model.graph.initializer[0].name))

    edited(folder, change)
    arguments = ("-d", folder / "data.npz", "-t", "ref", "-o", folder / "net.qcc")
    assert run_qcc("compile", folder / "tiny.onnx", *arguments).code == 0
    assert run_qcc("verify", folder / "net.qcc", "-d", folder / "data.npz").code == 0


def test_double_precision_models_are_converted_and_said_so(run_qcc: Qcc, folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for i, t in enumerate(list(model.graph.initializer)):
            wide = numpy_helper.to_array(t).astype(np.float64)
            model.graph.initializer[i].CopyFrom(numpy_helper.from_array(wide, t.name))
        for v in (*model.graph.input, *model.graph.output):
            v.type.tensor_type.elem_type = TensorProto.DOUBLE

    edited(folder, change)
    arguments = ("-d", folder / "data.npz", "-t", "ref", "-o", folder / "net.qcc")
    result = run_qcc("compile", folder / "tiny.onnx", *arguments)
    assert result.code == 0, result.err
    assert "float32" in result.err


def test_dimension_that_stays_unknown(compile_here: Compile, folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    edited(folder, change)
    complaint = compile_here(ModelError)
    assert "image" in complaint
    assert "shape" in complaint


# the data


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"picture": np.zeros((2, 1, 8, 8))}, ("picture", "image")),
        ({"image": np.zeros((2, 1, 8, 9))}, ("image", "shape")),
        ({"image": np.zeros((2, 1, 8, 8), np.complex64)}, ("complex64",)),
        ({"image": np.zeros((0, 1, 8, 8))}, ("no samples",)),
        ({"image": np.full((2, 1, 8, 8), np.inf)}, ("infinity",)),
        ({}, ("no arrays",)),
    ],
)
def test_calibration_arrays(compile_here: Compile, folder: Path, arrays: Arrays, words: tuple[str, ...]) -> None:
    np.savez(folder / "data.npz", **arrays)
    complaint = compile_here(ConfigError)
    for word in words:
        assert word in complaint


def test_no_data(run_qcc: Qcc, folder: Path) -> None:
    result = run_qcc("compile", folder / "tiny.onnx", "-t", "ref", "-o", folder / "net.qcc")
    assert result.code == ConfigError.exit_code
    assert "pass --data" in result.complaint


def test_reals_for_a_byte_input(compile_here: Compile) -> None:
    assert "whole numbers from 0 to 255" in compile_here(ConfigError, "--input", "uint8")


# options


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        (("-t", "tpu"), PluginError, "no 'tpu'; installed"),
        (("-O", "speed=9"), ConfigError, "speed"),
        (("-O", "speed"), ConfigError, "--option takes name=value"),
        (("--pipeline", "magic"), PluginError, "no 'magic'"),
        (("--pipeline", "dyadic, calibrate"), ConfigError, "calibrate takes a graph at stage float"),
        (("--pipeline", "canonicalize, canonicalize"), ConfigError, "ends at stage float"),
        (("--pipeline", "canonicalize, quantize, dyadic"), ConfigError, "quantize needs Ranges"),
        (("--pipeline", "canonicalize, wish"), PluginError, "no 'wish'"),
        (("--method", "guess"), ConfigError, "method"),
        (("-P", "calibrate.method"), ConfigError, "--pass takes name=value"),
        (("-P", "method=mse"), ConfigError, "--pass takes pass.option=value"),
        (("-P", "wish.x=1"), ConfigError, "wish"),
        (("--shape", "image=a"), ConfigError, "--shape takes"),
        (("--mean", "a,b"), ConfigError, "--mean takes numbers"),
        (("--scale", "1/0"), ConfigError, "--scale takes numbers"),
        (("-c", "none.yaml"), ConfigError, "none.yaml"),
        (("-o", "no/such/folder/net.qcc"), ConfigError, "does not exist"),
        (("-o", "tiny.onnx"), ConfigError, "exists"),
        (("-o", "tiny.onnx", "--force"), ConfigError, "is no qcc artifact"),
    ],
)
def test_options(compile_here: Compile, arguments: tuple[str, ...], error: type[QccError], word: str) -> None:
    assert word in compile_here(error, *arguments)


def test_usage(run_qcc: Qcc) -> None:
    for arguments in (("compile", "--nope"), ("fly",), ("run",)):
        result = run_qcc(*arguments)
        assert result.code == 2
        assert "Traceback" not in result.err


def test_output_that_exists_survives(run_qcc: Qcc, folder: Path) -> None:
    out = folder / "net"
    arguments = ("compile", folder / "tiny.onnx", "-d", folder / "data.npz", "-t", "ref", "-o", out)
    assert run_qcc(*arguments).code == 0
    before = (out / "manifest.json").read_bytes()
    result = run_qcc(*arguments)
    assert result.code == ConfigError.exit_code
    assert "--force" in result.complaint
    assert (out / "manifest.json").read_bytes() == before
    (out / "notes.txt").write_text("mine")
    assert run_qcc(*arguments, "--force").code == 0
    assert read_artifact(out).manifest.model == "tiny"


def test_output_that_cannot_be_written(run_qcc: Qcc, folder: Path) -> None:
    arguments = ("compile", folder / "tiny.onnx", "-d", folder / "data.npz", "-t", "ref")
    result = run_qcc(*arguments, "-o", "/proc/net.qcc")
    assert result.code == ConfigError.exit_code
    assert "cannot write /proc/net.qcc" in result.complaint
    assert "the folder" in run_qcc(*arguments, "-o", folder / "data.npz" / "net.qcc").complaint


# artifacts


@pytest.mark.parametrize("command", [("run", "-d", "data.npz"), ("verify", "-d", "data.npz"), ("bench",), ("inspect",)])
def test_tampered_artifact(
    run_qcc: Qcc, compiled: Path, folder: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    data = bytearray(compiled.read_bytes())
    at = data.index(b"iconv2d")
    data[at] ^= 1
    (folder / "bad.qcc").write_bytes(data)
    result = run_qcc(command[0], "bad.qcc", *command[1:])
    assert result.code == ArtifactError.exit_code
    assert "bad.qcc" in result.complaint


def test_foreign_artifacts(run_qcc: Qcc, folder: Path) -> None:
    shutil.copy(folder / "data.npz", folder / "foreign.qcc")
    for path in (folder / "foreign.qcc", folder / "absent.qcc", folder):
        result = run_qcc("run", path, "-d", folder / "data.npz")
        assert result.code == ArtifactError.exit_code
        assert str(path) in result.complaint


def test_wrong_data_for_an_artifact(run_qcc: Qcc, compiled: Path, folder: Path) -> None:
    np.savez(folder / "other.npz", picture=np.zeros((2, 1, 8, 8)))
    for command in ("run", "verify"):
        result = run_qcc(command, compiled, "-d", folder / "other.npz")
        assert result.code == ConfigError.exit_code
        assert "picture" in result.complaint
    assert "pass --data" in run_qcc("run", compiled).complaint


# text


def test_bad_graph_text(run_qcc: Qcc, folder: Path) -> None:
    (folder / "g.qir").write_text("graph @g float(%x: 2xf32) {\n  %y: 2xf32 = fly(%x)\n  return %y\n}\n")
    result = run_qcc("opt", folder / "g.qir")
    assert result.code == ParseError.exit_code
    assert "unknown operation 'fly'" in result.complaint
    (folder / "g.qir").write_text("nonsense")
    assert "line 1" in run_qcc("opt", folder / "g.qir").complaint
    assert "No such file" in run_qcc("opt", folder / "none.qir").complaint


# what is not the user's fault


def test_bugs_are_one_line_too(run_qcc: Qcc, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*arguments: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("qcc.discovery.discover", bug)
    result = run_qcc("passes")
    assert result.code == 1
    assert result.complaint.startswith("qcc: internal error: ZeroDivisionError: division by zero (--debug shows where")


def test_debug_shows_the_traceback(run_qcc: Qcc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["qcc", "passes", "nope", "--debug"])
    from qcc.cli import main

    with pytest.raises(PluginError):
        main()


def test_exit_codes_are_those_documented() -> None:
    import qcc.errors

    codes = {ConfigError: 2, ModelError: 3, PluginError: 4, ParseError: 5, TargetError: 6, ArtifactError: 7}
    for error, code in {**codes, MismatchError: 8, QccError: 1}.items():
        assert error.exit_code == code
        assert f"{error.__name__:<9}" in (qcc.errors.__doc__ or "")

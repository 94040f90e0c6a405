"""The configuration: shorthands, precedence, paths, and one clear line for every mistake."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from qcc.config import CompileConfig, make_config, merge, read_fields
from qcc.errors import ConfigError

LEAST: dict[str, Any] = {"model": "net.onnx", "output": "net.qcc"}


def test_shorthands_spell_the_same_configuration() -> None:
    short = make_config(
        {**LEAST, "target": "ref", "input": "uint8", "data": "cal.npz", "pipeline": "a, b{x=1, y=word}"}
    )
    full = make_config(
        {
            **LEAST,
            "target": {"name": "ref", "options": {}},
            "input": {"mode": "uint8"},
            "data": {"path": "cal.npz"},
            "pipeline": ["a", {"b": {"x": 1, "y": "word"}}],
        }
    )
    assert short == full
    assert make_config({**LEAST, "pipeline": ["a", "b{x=1, y=word}"]}).pipeline == full.pipeline
    assert make_config({**LEAST, "pipeline": [{"name": "a"}, {"b": None}]}).pipeline != full.pipeline
    assert make_config(LEAST).pipeline == "default"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modell": 1}, "modell: Extra inputs are not permitted"),
        ({"batch": 0}, "batch: Input should be greater than or equal to 1"),
        ({"shapes": {"x": [1, 0]}}, "shapes.x.1"),
        ({"input": "int4"}, "input.mode: Input should be 'float' or 'uint8'"),
        ({"input": {"mode": "uint8", "std": [1, 0, 1]}}, "std must be positive"),
        ({"data": {"samples": 3}}, "data.path: Field required"),
        ({"data": {"path": "a", "layout": "CHW"}}, "data.layout"),
        ({"pipeline": "a, b{"}, "expected option=value at column 6"),
        ({"pipeline": ["a b"]}, "expected ',' between passes"),
        ({"target": {"name": "cpu", "speed": 1}}, "target.speed: Extra inputs"),
        ({"seed": -1}, "seed"),
        ({"model": None}, "model"),
    ],
)
def test_mistakes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({**LEAST, **fields}, "qcc.yaml")
    assert str(caught.value).startswith("qcc.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"batch: .*; seed: "):
        make_config({**LEAST, "batch": -1, "seed": "x"})


def test_a_shape_may_leave_the_batch_as_it_is() -> None:
    assert make_config({**LEAST, "shapes": {"x": [-1, 3, 8, 8]}}).shapes == {"x": (-1, 3, 8, 8)}


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_paths_in_a_file_start_at_its_folder(tmp_path: Path, suffix: str) -> None:
    fields = {**LEAST, "data": {"path": "cal.npz", "samples": 4}, "cache": "/abs/cache", "target": "ref"}
    path = tmp_path / f"qcc{suffix}"
    path.write_text(json.dumps(fields) if suffix == ".json" else yaml.safe_dump(fields))
    config = make_config(read_fields(path))
    assert config.model == tmp_path / "net.onnx"
    assert config.output == tmp_path / "net.qcc"
    assert config.data is not None
    assert config.data.path == str(tmp_path / "cal.npz")
    assert config.cache == Path("/abs/cache")


def test_functions_and_flags_are_not_anchored(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: a.onnx\ndata: mine.loader:arrays\n")
    fields = merge(read_fields(tmp_path / "c.yaml"), {"output": "here.qcc", "target": {"options": {"mcpu": "x"}}})
    config = make_config(fields)
    assert config.data is not None
    assert config.data.path == "mine.loader:arrays"
    assert config.output == Path("here.qcc")
    (tmp_path / "d.yaml").write_text("model: a.onnx\noutput: b\ndata: loader.py:arrays\n")
    with_file = make_config(read_fields(tmp_path / "d.yaml"))
    assert with_file.data is not None
    assert with_file.data.path == f"{tmp_path}/loader.py:arrays"
    assert "loader.py:arrays" in with_file.resolved_yaml()
    assert str(tmp_path) not in with_file.resolved_yaml()
    assert config.target.model_dump() == {"name": "cpu", "options": {"mcpu": "x"}}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "model: [", "c.yaml: "),
        ("c.yaml", "- a\n- b\n", "expected a mapping"),
        ("c.yaml", "", "expected a mapping"),
        ("c.yaml", "1: 2\n", "expected a mapping"),
        ("c.yaml", "model: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("c.json", "{", "c.json: "),
        ("c.json", "[" * 100_000, "c.json: "),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_fields(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_fields(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_fields(tmp_path / "b.yaml")


def test_resolved_config_reads_back_and_hides_where_things_lie() -> None:
    config = make_config(
        {
            "model": "/home/me/net.onnx",
            "output": "/tmp/x/net.qcc",
            "data": "/data/cal.npz",
            "cache": "/var/cache",
            "threads": 3,
            "pipeline": ["a", {"b": {"x": 1}}],
            "input": {"mode": "uint8", "mean": 0.5, "std": [1, 2, 3]},
        }
    )
    text = config.resolved_yaml()
    assert "/" not in text
    again = CompileConfig.model_validate({**yaml.safe_load(text), "output": "o.qcc"})
    assert again.pipeline == config.pipeline
    assert again.input == config.input
    assert again.resolved_yaml() == text


def test_samples_limit_each_other() -> None:
    config = make_config({**LEAST, "data": {"path": "a", "samples": 5}})
    assert config.data is not None
    assert [config.data.limited(n).samples for n in (None, 3, 9)] == [5, 3, 5]

"""The JSON Schemas in schemas/ are those of the models, and say what the models say."""

import json
from pathlib import Path

import pytest

from qcc.schemas import json_schema, names, schema_text

FOLDER = Path(__file__).resolve().parents[2] / "schemas"


def test_every_model_has_its_file() -> None:
    assert sorted(p.stem for p in FOLDER.iterdir()) == list(names())


@pytest.mark.parametrize("name", names())
def test_not_stale(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == schema_text(name), "run: qcc schema --write"


@pytest.mark.parametrize("name", ["capabilities", "config", "fpga-device", "manifest"])
def test_unknown_fields_are_refused(name: str) -> None:
    assert json_schema(name)["additionalProperties"] is False


def test_config_schema_names_every_field() -> None:
    schema = json.loads(schema_text("config"))
    assert set(schema["required"]) == {"model", "output"}
    assert {"target", "data", "input", "shapes", "batch", "calibration", "pipeline", "seed"} <= set(
        schema["properties"]
    )

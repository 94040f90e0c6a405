"""The ready-made pipeline: its order, and what is in it only on request."""

import pytest

from qcc.errors import ConfigError, PluginError
from qcc.passmgr.plugins import make_recipe


def test_bytes_are_folded_before_calibration_and_only_on_request() -> None:
    assert "byte-input" not in [p.name for p in make_recipe("default", {})]
    passes = make_recipe("default", {"byte-input": {"layout": "NHWC"}})
    names = [p.name for p in passes]
    assert names.index("canonicalize") < names.index("byte-input") < names.index("calibrate")
    assert names[names.index("byte-input") + 1] == "canonicalize"
    assert str(passes[names.index("byte-input")]) == "byte-input{layout=NHWC}"


def test_residuals_are_widened_after_bits_are_chosen_and_only_on_request() -> None:
    assert "widen-residuals" not in [p.name for p in make_recipe("default", {"assign-bits": {}})]
    names = [p.name for p in make_recipe("default", {"assign-bits": {}, "widen-residuals": {"bits": 16}})]
    assert names.index("assign-bits") < names.index("widen-residuals") < names.index("quantize")
    assert names.index("calibrate") < names.index("widen-residuals")


def test_candidates_are_judged_as_the_rest_of_the_pipeline_compiles_them() -> None:
    given = {
        "quantize": {"activation_bits": 4},
        "widen-residuals": {"bits": 8},
        "activation-tails": {},
        "round-weights": {"samples": 64},
    }
    chosen = {"mixed-precision": {"budgets": {"bits": 4}}, "precision-groups": {}, "rearrange-blocks": {}}
    corrected: dict[str, dict[str, object]] = {"round-weights": {"samples": 64}, "bias-correct": {}}
    expected = {
        "widen-residuals": {"bits": 8},
        "quantize": {"activation_bits": 4},
        "activation-tails": {"scored_by": corrected},
        **corrected,
    }
    passes = {p.name: p for p in make_recipe("default", {**given, **chosen})}
    found = [list(passes[name].model_dump()["scored_by"].items()) for name in chosen]
    assert found == [list(expected.items())] * 3
    assert passes["activation-tails"].model_dump()["scored_by"] == corrected
    plain: dict[str, dict[str, object]] = {"quantize": {}, "round-weights": {}, "bias-correct": {}}
    own = {"mixed-precision": {"budgets": {"bits": 4}, "scored_by": {}}, "precision-groups": {}}
    passes = {p.name: p for p in make_recipe("default", own)}
    assert [passes[name].model_dump()["scored_by"] for name in own] == [{}, plain]


@pytest.mark.parametrize(
    ("options", "strength"),
    [
        ({}, 0.5),
        ({"quantize": {"weight_bits": 8}}, 0.5),
        ({"quantize": {"weight_bits": 4}}, 0.25),
        ({"mixed-precision": {"budgets": {"bits": 4}}}, 0.25),
        ({"quantize": {"weight_bits": 4}, "equalize": {"strength": 0.75}}, 0.75),
    ],
)
def test_narrow_weights_are_equalized_less(options: dict[str, dict[str, object]], strength: float) -> None:
    equalize = next(p for p in make_recipe("default", options) if p.name == "equalize")
    assert equalize.model_dump()["strength"] == strength


def test_options_of_a_pass_that_does_not_run_are_an_error() -> None:
    with pytest.raises(ConfigError, match="'fold-relu', which the default pipeline does not have"):
        make_recipe("default", {"fold-relu": {}})


@pytest.mark.parametrize("name", ["mixed-precision", "precision-groups", "rearrange-blocks", "activation-tails"])
def test_passes_to_judge_by_are_checked_before_anything_runs(name: str) -> None:
    with pytest.raises(PluginError, match="no 'fold-relu'"):
        make_recipe("default", {name: {"scored_by": {"fold-relu": {}}}})
    with pytest.raises(ConfigError, match="pass 'quantize': weight_bits"):
        make_recipe("default", {name: {"scored_by": {"quantize": {"weight_bits": 99}}}})

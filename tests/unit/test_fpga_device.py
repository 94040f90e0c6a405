"""Device files of FPGAs: those that ship, users' own, and what is refused."""

from pathlib import Path

import pytest
import yaml

from qcc.errors import ConfigError
from qcc_targets.fpga.device import RESOURCES, Device, Memory, load_device, shipped

FIELDS = {
    "name": "mine",
    "part": "mine-1",
    "synthesis": "ecp5",
    "luts": 1000,
    "lut_inputs": 4,
    "flip_flops": 1000,
    "clock_mhz": 50,
    "memories": [{"kind": "DP16KD", "count": 10, "shapes": [[1024, 18], [512, 36]]}],
}


def test_the_parts_that_ship() -> None:
    assert set(shipped()) == {"ice40hx8k", "lfe5u-85f", "xc7z020", "xcku5p", "xczu3eg"}
    for name in shipped():
        device = load_device(name)
        assert device.name == name
        assert set(device.limits()) == set(RESOURCES)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_file_of_ones_own(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_text(yaml.safe_dump(FIELDS) if suffix == ".yaml" else Device.model_validate(FIELDS).model_dump_json())
    device = load_device(str(path))
    assert device == Device.model_validate(FIELDS)
    assert device.limits() == {"luts": 700, "flip_flops": 700, "dsps": 0, "memory_blocks": 9}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"luts": -1}, "luts"),
        ({"colour": "blue"}, "colour"),
        ({"clock_mhz": 0}, "clock_mhz"),
        ({"synthesis": "stratix"}, "synthesis"),
        ({"memories": FIELDS["memories"] * 2}, "two memories share one kind"),  # type: ignore[operator]
        ({"memories": []}, "memories"),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(FIELDS | change))
    with pytest.raises(ConfigError, match=complaint):
        load_device(str(path))


@pytest.mark.parametrize("text", ["a: [", "[1, 2]", ""])
def test_what_is_no_device_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_device(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_device(str(tmp_path / "none.yaml"))


def test_an_unknown_device_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no device 'virtex'; there are ice40hx8k, .*files of your own"):
        load_device("virtex")


def test_memories_are_counted_in_their_best_shape() -> None:
    memory = Memory(kind="RAMB18E2", count=8, shapes=((16384, 1), (2048, 9), (1024, 18), (512, 36)))
    assert memory.blocks(1, 1) == 1
    assert memory.blocks(512, 36) == 1
    assert memory.blocks(513, 36) == 2  # two of 1024 words of 18 bits
    assert memory.blocks(16384, 1) == 1
    assert memory.blocks(16384, 8) == 8

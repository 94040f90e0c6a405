"""The project itself: what the wheel holds, import rules, module sizes, README, change notes."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from qcc import errors
from qcc.cli import INTERRUPTED, app
from qcc.errors import QccError
from qcc.ir.text import parse
from qcc.passmgr.context import PassContext
from qcc.passmgr.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("qcc", "passes", "targets", "tests", "examples")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def modules() -> list[Path]:
    return [p for folder in SOURCES for p in sorted((ROOT / folder).rglob("*.py"))]


def commands() -> list[str]:
    """The lines of the README's first indented block, without their comments."""
    block = re.search(r"(?:^    .+\n)+", README, re.MULTILINE)
    return [line.split("#")[0].strip() for line in block[0].splitlines()] if block else []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_installs_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {n for n in top if not n.endswith(".dist-info")} == {"qcc", "qcc_passes", "qcc_targets"}


def test_wheel_carries_type_markers_and_licence(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"qcc/py.typed", "qcc_passes/py.typed", "qcc_targets/py.typed"} <= names
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


def test_wheel_metadata_names_the_licence_and_python(wheel: zipfile.ZipFile) -> None:
    (metadata,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    text = wheel.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert re.search(r"Requires-Python: .*>=3\.11", text)


def test_licence_is_the_whole_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_import_rules_hold() -> None:
    linter = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    result = subprocess.run(linter, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_module_is_above_400_lines() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in modules()}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_nothing_is_left_unfinished() -> None:
    words = re.compile(r"raise NotImplemented" + r"Error|\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    found = [f"{p.relative_to(ROOT)}: {m[0]}" for p in modules() for m in words.finditer(p.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize("group", ["qcc.passes", "qcc.targets", "qcc.backends"])
def test_every_built_in_plug_in_loads(group: str) -> None:
    for entry in entry_points(group=group):
        if entry.dist is not None and entry.dist.name == "qcc":
            assert isinstance(entry.load(), type), entry.name


def test_readme_opens_with_two_commands_that_exist() -> None:
    assert len(commands()) == 2
    for command in commands():
        shell, script = command.split()
        assert shell == "bash"
        assert subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True).returncode == 0


def test_continuous_integration_runs_the_second_command() -> None:
    assert commands()[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_readme_lists_every_exit_code() -> None:
    raised = {
        QccError.exit_code,
        *(kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QccError)),
    }
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert listed == raised | {0, INTERRUPTED}


def test_readme_lists_every_command() -> None:
    listed = {
        name for row in re.findall(r"^\| (`qcc .*?) \|", README, re.MULTILINE) for name in re.findall(r"qcc (\w+)", row)
    }
    assert listed == {command.name for command in app.registered_commands}


def test_readme_pass_works() -> None:
    (source,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "(Pass)" in code]
    names: dict[str, Any] = {}
    exec(source, names)
    graph = parse("graph @g float(%x: Nx4xf32) {\n  return %x\n}\n")
    assert Pipeline((names["CountConstants"](least=2),)).run(graph, PassContext()) is graph


def test_readme_layout_exists() -> None:
    layout = README.partition("## Layout")[2]
    paths = re.findall(r"^    (\S+/)(?=\s)", layout, re.MULTILINE)
    assert len(paths) > 4
    assert [path for path in paths if not (ROOT / path).is_dir()] == []


def test_change_notes_are_named_as_their_readme_says() -> None:
    notes = [p.name for p in (ROOT / "changelog").iterdir() if p.name != "README.md"]
    assert notes
    assert [n for n in notes if not re.fullmatch(r"[a-z0-9-]+\.(added|changed|fixed|removed)\.md", n)] == []


def test_quickstart_stays_small() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z", "examples/quickstart"], cwd=ROOT, capture_output=True, text=True)
    sizes = [(ROOT / name).stat().st_size for name in tracked.stdout.split("\0") if name]
    assert sum(sizes) < 2_000_000

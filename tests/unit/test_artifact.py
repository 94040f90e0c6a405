"""Artifacts: reproducible, written whole or not at all, and refused when anything in them differs."""

import gc
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from qcc.artifact import store
from qcc.artifact.contents import read_graph
from qcc.artifact.manifest import MANIFEST, Manifest, TensorSpec
from qcc.artifact.store import read_artifact, write_artifact
from qcc.errors import ArtifactError, ConfigError
from qcc.ir.graph import Graph
from qcc.ir.text import render

WriteSmall = Callable[..., Manifest]
FORMS = ["folder", "single.qcc"]


def tree(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(tmp_path: Path, form: str, write_small: WriteSmall, integer_graph: Graph) -> None:
    manifest = write_small(tmp_path / form)
    artifact = read_artifact(tmp_path / form)
    assert artifact.manifest == manifest
    assert set(artifact.files) == {"graph.qir", "weights.safetensors"}
    assert render(read_graph(artifact.files)) == render(integer_graph)
    assert [p.name for p in tmp_path.iterdir()] == [form]


@pytest.mark.parametrize("form", FORMS)
def test_same_contents_same_bytes(tmp_path: Path, form: str, write_small: WriteSmall) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_small(tmp_path / folder / form)
    assert tree(tmp_path / "a" / form) == tree(tmp_path / "b" / form)


def test_archive_files_vanish_with_the_artifact(tmp_path: Path, write_small: WriteSmall) -> None:
    write_small(tmp_path / "a.qcc")
    artifact = read_artifact(tmp_path / "a.qcc")
    unpacked = artifact.files["graph.qir"]
    assert unpacked.is_file()
    del artifact
    gc.collect()
    assert not unpacked.exists()


@pytest.mark.parametrize("form", FORMS)
def test_existing_output_needs_force(tmp_path: Path, form: str, write_small: WriteSmall) -> None:
    out = tmp_path / form
    write_small(out)
    before = tree(out)
    with pytest.raises(ConfigError, match="exists; choose another or pass --force"):
        write_small(out, model="other")
    assert tree(out) == before
    write_small(out, model="other", force=True)
    assert read_artifact(out).manifest.model == "other"
    assert [p.name for p in tmp_path.iterdir()] == [form]


def test_force_replaces_artifacts_only(tmp_path: Path, write_small: WriteSmall) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    (tmp_path / "model.onnx").write_bytes(b"x")
    for name in ("photos", "model.onnx"):
        with pytest.raises(ConfigError, match="is no qcc artifact"):
            write_small(tmp_path / name, force=True)
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"x"


def test_missing_parent_and_link(tmp_path: Path, write_small: WriteSmall) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        write_small(tmp_path / "no" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        write_small(tmp_path / "link", force=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_parent(tmp_path: Path, write_small: WriteSmall) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match="no permission"):
            write_small(tmp_path / "a")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("form", FORMS)
def test_failed_write_leaves_nothing(
    tmp_path: Path, form: str, write_small: WriteSmall, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / form
    write_small(out)
    before = tree(out)

    def full_disk(path: Path, payload: object) -> None:
        path.mkdir()
        (path / "half").write_bytes(b"")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_write_folder", full_disk)
    monkeypatch.setattr(store, "_write_archive", full_disk)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_small(out, force=True)
    assert tree(out) == before
    assert [p.name for p in tmp_path.iterdir()] == [form]


def test_failed_swap_restores_the_old(tmp_path: Path, write_small: WriteSmall, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "folder"
    write_small(out)
    rename = Path.rename

    def fail_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_new)
    with pytest.raises(ConfigError, match="Input/output error"):
        write_small(out, model="other", force=True)
    assert read_artifact(out).manifest.model == "small"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\b", "", ".", "manifest.json", "a//b", "./a"])
def test_unsafe_names_are_not_written(tmp_path: Path, write_small: WriteSmall, name: str) -> None:
    manifest = write_small(tmp_path / "a")
    with pytest.raises(ConfigError, match="unsafe file name"):
        write_artifact(tmp_path / "b", manifest, {name: b""})


def test_every_flipped_byte_of_a_folder_is_noticed(tmp_path: Path, write_small: WriteSmall) -> None:
    out = tmp_path / "a"
    write_small(out)
    for path in sorted(out.rglob("*")):
        good = path.read_bytes()
        for i in range(0, len(good), 7):
            path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
            with pytest.raises(ArtifactError):
                read_artifact(out)
        path.write_bytes(good)
    read_artifact(out)


def test_no_flipped_byte_of_an_archive_changes_what_is_read(tmp_path: Path, write_small: WriteSmall) -> None:
    out = tmp_path / "a.qcc"
    write_small(out)
    good = out.read_bytes()
    original = read_artifact(out)
    wanted = {name: path.read_bytes() for name, path in original.files.items()}
    refused = 0
    for i in range(0, len(good), 11):
        out.write_bytes(good[:i] + bytes([good[i] ^ 0x41]) + good[i + 1 :])
        try:
            artifact = read_artifact(out)
        except ArtifactError:
            refused += 1
            continue
        assert artifact.manifest == original.manifest
        assert {name: path.read_bytes() for name, path in artifact.files.items()} == wanted
    assert refused > len(good) // 11 * 0.8


def test_truncated_archive(tmp_path: Path, write_small: WriteSmall) -> None:
    out = tmp_path / "a.qcc"
    write_small(out)
    good = out.read_bytes()
    for size in (0, 1, 100, len(good) // 2, len(good) - 1):
        out.write_bytes(good[:size])
        with pytest.raises(ArtifactError):
            read_artifact(out)


def test_missing_and_surplus_files(tmp_path: Path, write_small: WriteSmall) -> None:
    out = tmp_path / "a"
    write_small(out)
    (out / "device").mkdir()
    (out / "device" / "lib.so").write_bytes(b"\x7fELF")
    with pytest.raises(ArtifactError, match=r"holds device/lib\.so, which the manifest does not list"):
        read_artifact(out)
    shutil.rmtree(out / "device")
    (out / "graph.qir").unlink()
    with pytest.raises(ArtifactError, match=r"graph\.qir is missing"):
        read_artifact(out)


def test_links_are_refused(tmp_path: Path, write_small: WriteSmall) -> None:
    out = tmp_path / "a"
    write_small(out)
    (out / "graph.qir").rename(tmp_path / "graph.qir")
    (out / "graph.qir").symlink_to(tmp_path / "graph.qir")
    with pytest.raises(ArtifactError, match=r"graph\.qir is a symbolic link"):
        read_artifact(out)


def test_manifest_naming_files_outside(tmp_path: Path, write_small: WriteSmall) -> None:
    out = tmp_path / "a"
    manifest: Manifest = write_small(out)
    evil = manifest.model_copy(update={"files": {"../x": manifest.files["graph.qir"], **manifest.files}})
    (out / MANIFEST).write_bytes(evil.to_bytes())
    with pytest.raises(ArtifactError, match=r"unsafe file name '\.\./x'"):
        read_artifact(out)


def rewrite(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> None:
    path.unlink()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)


def test_foreign_archives(tmp_path: Path, write_small: WriteSmall) -> None:
    out = tmp_path / "a.qcc"
    write_small(out)
    with zipfile.ZipFile(out) as archive:
        members = [(n, archive.read(n)) for n in archive.namelist()]
    rewrite(out, members, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="no archive that qcc wrote"):
        read_artifact(out)
    rewrite(out, [*members, ("../evil", b"x")])
    with pytest.raises(ArtifactError, match=r"\.\./evil, which the manifest does not list"):
        read_artifact(out)
    rewrite(out, members[1:])
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json"):
        read_artifact(out)
    out.write_bytes(b"\x7fELF not a zip")
    with pytest.raises(ArtifactError, match="is no qcc artifact"):
        read_artifact(out)


def test_other_schema_version_and_unknown_fields(tmp_path: Path, write_small: WriteSmall) -> None:
    out = tmp_path / "a"
    write_small(out)
    text = (out / MANIFEST).read_text()
    (out / MANIFEST).write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(ArtifactError, match="schema_version"):
        read_artifact(out)
    (out / MANIFEST).write_text(text.replace('"schema_version": 1', '"schema_version": 1,\n  "surprise": 1'))
    with pytest.raises(ArtifactError, match="surprise"):
        read_artifact(out)
    (out / MANIFEST).write_text(text.replace("\n", " "))
    with pytest.raises(ArtifactError, match="was edited"):
        read_artifact(out)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such artifact"):
        read_artifact(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json"):
        read_artifact(tmp_path / "empty")


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [None, None]},
        {"dtype": "float32"},
        {"real": None},
        {"quant": {"bits": 16, "mult": 1, "shift": 0, "zero_point": 0}},
        {"quant": {"bits": 8, "mult": 1, "shift": 0, "zero_point": 256}},
        {"quant": {"bits": 8, "mult": 0, "shift": 0, "zero_point": 0}},
    ],
)
def test_inconsistent_specs(fields: dict[str, object]) -> None:
    good = {
        "name": "x",
        "shape": [None, 2],
        "dtype": "uint8",
        "quant": {"bits": 8, "mult": 1, "shift": 0, "zero_point": 0},
        "real": "float32",
    }
    assert TensorSpec.model_validate(good).qmax == 255
    with pytest.raises(ValueError):
        TensorSpec.model_validate({**good, **fields})

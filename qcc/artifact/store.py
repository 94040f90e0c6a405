"""Writing and reading artifacts: a folder, or one stored zip archive (suffix ``.qcc``).

Both hold the same files and are the same bytes for the same contents. Nothing is left behind by a
failed write, and nothing is used before every size and hash is checked.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import weakref
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from qcc.artifact.manifest import MANIFEST, FileInfo, Manifest
from qcc.errors import ArtifactError, ConfigError

SUFFIX: Final = ".qcc"
_MANIFEST_LIMIT: Final = 16 << 20
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A checked artifact. ``files`` maps relative paths to files on disk.

    An archive's files live in a private temporary folder that goes away with the mapping ``files``.
    """

    path: Path
    manifest: Manifest
    files: Mapping[str, Path]

    def read(self, name: str) -> bytes:
        """The contents of one file. Raises ArtifactError when the artifact has no such file."""
        if (path := self.files.get(name)) is None:
            raise ArtifactError(f"{self.path}: holds no {name}")
        return path.read_bytes()


class _Unpacked(dict[str, Path]):
    """Paths by name; unlike a plain dict it can carry a finalizer."""


def write_artifact(out: Path, manifest: Manifest, contents: Mapping[str, bytes], *, force: bool = False) -> Manifest:
    """Write ``contents`` (by relative path) and ``manifest``, completed with their hashes; returns it.

    A path ending in ``.qcc`` becomes a single file, any other a folder. The output appears whole,
    by a rename, or not at all. Raises ConfigError where it exists (unless ``force``, which
    replaces an earlier artifact but never anything else) or cannot be written.
    """
    check_output(out, force=force)
    for name in contents:
        _check_name(name, ConfigError)
    infos = {name: FileInfo.of(contents[name]) for name in sorted(contents)}
    sealed = manifest.model_copy(update={"files": infos}).to_bytes()
    payload = {MANIFEST: sealed, **{name: contents[name] for name in sorted(contents)}}
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            fresh = Path(scratch) / "new"
            (_write_archive if out.suffix == SUFFIX else _write_folder)(fresh, payload)
            _swap(fresh, out, Path(scratch) / "old")
    except OSError as e:
        raise ConfigError(f"cannot write {out}: {e.strerror or e}") from e
    return Manifest.from_bytes(sealed)


def _swap(fresh: Path, out: Path, aside: Path) -> None:
    """Put ``fresh`` in the place of ``out``; a folder, which cannot be replaced in one step, goes ``aside`` first."""
    if not out.is_dir():
        fresh.replace(out)
        return
    out.rename(aside)
    try:
        fresh.rename(out)
    except OSError:
        aside.rename(out)
        raise


def check_output(out: Path, *, force: bool = False) -> None:
    """Raise ConfigError unless an artifact may be written to ``out``; cheap, so asked before a long compilation."""
    if out.is_symlink():
        raise ConfigError(f"output {out} is a symbolic link")
    if out.exists():
        if not force:
            raise ConfigError(f"output {out} exists; choose another or pass --force")
        if not _looks_like_artifact(out):
            raise ConfigError(f"output {out} exists and is no qcc artifact; --force replaces artifacts only")
    parent = out.parent
    if not parent.is_dir():
        raise ConfigError(f"cannot write {out}: the folder {parent} does not exist")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {out}: no permission for the folder {parent}")


def read_artifact(path: Path) -> Artifact:
    """The artifact at ``path``, every file of it checked against the manifest.

    Raises ArtifactError when it is missing, malformed, of another schema version, or when a file
    is missing, surplus, a symbolic link, or not the one that was written.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        if path.is_file():
            return _read_archive(path)
    except OSError as e:
        raise ArtifactError(f"{path}: cannot be read: {e.strerror or e}") from e
    raise ArtifactError(f"{path}: no such artifact")


def _check_name(name: str, error: type[ArtifactError] | type[ConfigError] = ArtifactError) -> None:
    path = PurePosixPath(name)
    plain = name == str(path) and not path.is_absolute() and ".." not in path.parts
    if not plain or "\\" in name or "\0" in name or name in (".", MANIFEST):
        raise error(f"unsafe file name {name!r} in an artifact")


def _write_folder(root: Path, payload: Mapping[str, bytes]) -> None:
    for name, data in payload.items():
        _write_file(root / name, data)


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_archive(path: Path, payload: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in payload.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)


def _looks_like_artifact(path: Path) -> bool:
    if path.is_dir():
        return (path / MANIFEST).is_file() or not any(path.iterdir())
    return path.suffix == SUFFIX and path.is_file()


def _read_folder(root: Path) -> Artifact:
    found: dict[str, Path] = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            raise ArtifactError(f"{root}: {name} is a symbolic link")
        if not path.is_dir():
            found[name] = path
    source = found.pop(MANIFEST, None)
    if source is None:
        raise ArtifactError(f"{root}: is no qcc artifact: it holds no {MANIFEST}")
    if source.stat().st_size > _MANIFEST_LIMIT:
        raise ArtifactError(f"{root}: {MANIFEST} is too large")
    manifest = _parse_manifest(root, source.read_bytes())
    _check_listing(root, manifest, {name: path.stat().st_size for name, path in found.items()})
    for name, info in manifest.files.items():
        _check_contents(root, name, info, found[name].read_bytes())
    return Artifact(root, manifest, {name: found[name] for name in manifest.files})


def _read_archive(path: Path) -> Artifact:
    try:
        with zipfile.ZipFile(path) as archive:
            return _unpack(path, archive)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as e:
        raise ArtifactError(f"{path}: is no qcc artifact: {e}") from e


def _unpack(path: Path, archive: zipfile.ZipFile) -> Artifact:
    members = archive.infolist()
    sizes = {m.filename: m.file_size for m in members}
    if len(sizes) != len(members) or archive.comment or any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise ArtifactError(f"{path}: is no archive that qcc wrote")
    if sizes.pop(MANIFEST, _MANIFEST_LIMIT + 1) > _MANIFEST_LIMIT:
        raise ArtifactError(f"{path}: is no qcc artifact: it holds no {MANIFEST}, or one that is too large")
    manifest = _parse_manifest(path, archive.read(MANIFEST))
    _check_listing(path, manifest, sizes)
    root = Path(tempfile.mkdtemp(prefix="qcc-"))
    files = _Unpacked({name: root / name for name in manifest.files})
    weakref.finalize(files, shutil.rmtree, root, ignore_errors=True)
    for name, info in manifest.files.items():
        data = archive.read(name)
        _check_contents(path, name, info, data)
        _write_file(files[name], data)
    return Artifact(path, manifest, files)


def _parse_manifest(where: Path, data: bytes) -> Manifest:
    try:
        manifest = Manifest.from_bytes(data)
        for name in manifest.files:
            _check_name(name)
    except ArtifactError as e:
        raise ArtifactError(f"{where}: {e}") from e
    return manifest


def _check_listing(where: Path, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    if missing := sorted(set(manifest.files) - set(sizes)):
        raise ArtifactError(f"{where}: {missing[0]} is missing")
    if surplus := sorted(set(sizes) - set(manifest.files)):
        raise ArtifactError(f"{where}: holds {surplus[0]}, which the manifest does not list")
    for name, info in manifest.files.items():
        if sizes[name] != info.size:
            raise ArtifactError(f"{where}: {name} has {sizes[name]} bytes, the manifest says {info.size}")


def _check_contents(where: Path, name: str, info: FileInfo, data: bytes) -> None:
    if FileInfo.of(data) != info:
        raise ArtifactError(f"{where}: {name} was changed since it was written: its sha256 differs")

"""What a checkpoint holds, file by file. The manifest is written last: a checkpoint without it was never finished."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from hf_peft_recipes.results import write_text

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
_THREADS = 4
"""Syncing waits for the disk, and digesting lets go of the interpreter."""


class ManifestError(ValueError):
    """There is no manifest, or it says nothing that could be held against the files."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Batch:
    """How the rows of an optimizer step were shared out."""

    processes: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int

    @property
    def rows(self) -> int:
        """Return the rows of an optimizer step, over all processes."""
        return self.processes * self.per_device_train_batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    """Optimizer steps done."""
    planned_steps: int
    """Of the whole run."""
    resumable: bool
    """Whether it holds what training goes on from, beside the weights."""
    batch: Batch
    written: str
    """Date and time, ISO 8601."""
    files: Mapping[str, StoredFile]
    """Path below the checkpoint's folder to what lies there."""

    @property
    def bytes(self) -> int:
        """Return the size of all files together."""
        return sum(file.bytes for file in self.files.values())


def seal(folder: Path, step: int, planned_steps: int, resumable: bool, batch: Batch) -> Manifest:
    """Return the manifest of the folder's files, which are on disk now, as is the manifest.

    Args:
        folder: of the checkpoint, all of whose other files are written.
        step: optimizer steps done.
        planned_steps: of the whole run.
        resumable: whether training can go on from it.
        batch: how rows are shared out.

    Raises:
        OSError: something could not be brought to disk; the checkpoint is not to be used.
    """
    names = sorted(file_names(folder))
    with ThreadPoolExecutor(_THREADS) as threads:
        stored = list(threads.map(lambda name: _stored(folder / name), names))
    written = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(step, planned_steps, resumable, batch, written, dict(zip(names, stored, strict=True)))
    for inner in {(folder / name).parent for name in names} - {folder}:
        sync_folder(inner)
    content = {"schema_version": SCHEMA_VERSION, **asdict(manifest)}
    write_text(folder / MANIFEST_FILE, json.dumps({**content, "sha256": _own_digest(content)}, indent=1) + "\n")
    sync_folder(folder)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return what the checkpoint in `folder` says of itself.

    Raises:
        ManifestError: why it says nothing.
    """
    file = folder / MANIFEST_FILE
    if file.is_symlink():
        raise ManifestError(f"{MANIFEST_FILE}: not a plain file")
    try:
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"no {MANIFEST_FILE}: its writing was cut off, or other software wrote it") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{MANIFEST_FILE} cannot be read: {' '.join(str(error).split())}") from None
    try:
        if (version := told["schema_version"]) != SCHEMA_VERSION:
            raise ManifestError(f"{MANIFEST_FILE} has schema version {version!r}; this software reads {SCHEMA_VERSION}")
        files = {_inside(name): StoredFile(**facts) for name, facts in told["files"].items()}
        if told.pop("sha256") != _own_digest(told):
            raise ManifestError(f"{MANIFEST_FILE}: other content than was written")
        del told["schema_version"]
        return Manifest(**{**told, "batch": Batch(**told["batch"]), "files": files})
    except (KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{MANIFEST_FILE} is not one: {error}") from None


def file_names(folder: Path) -> Iterator[str]:
    """Yield the paths below `folder` of all that lies there but the manifest, folders left out; links are files."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST_FILE and (path.is_symlink() or not path.is_dir()):
            yield name


def digest(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(content: Mapping[str, Any]) -> str:
    """Return the sha256 of a manifest's content but for itself: steps and batch decide what is trained, too."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk: a file that is synced in a folder that is not may be gone after a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: Path) -> None:
    """Bring the files of a folder to disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _stored(path: Path) -> StoredFile:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(os.fstat(file.fileno()).st_size, found)


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ManifestError(f"{MANIFEST_FILE} names {name!r}, which lies outside of the checkpoint")
    return name

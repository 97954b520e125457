"""A checkpoint on its way to disk: made beside its place, and put there by one rename once all of it is synced."""

import ctypes
import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hf_peft_recipes.checkpoints.manifest import MANIFEST_FILE, Batch, Manifest, seal, sync_files, sync_folder
from hf_peft_recipes.checkpoints.verdicts import PREFIX, found_checkpoints
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.results import PARTIAL

_REMOVED = ".removed"
_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux, see renameat2(2)."""


class CheckpointError(RecipeError):
    """A checkpoint could not be written; those that were are as they were."""


@dataclass(frozen=True)
class Writing:
    """One checkpoint that is being written.

    Args:
        folder: of the run.
        step: optimizer steps done.
    """

    folder: Path
    step: int

    @property
    def target(self) -> Path:
        """Return where it will stand."""
        return self.folder / f"{PREFIX}{self.step}"

    @property
    def partial(self) -> Path:
        """Return where its files are written."""
        return self.folder / f".{self.target.name}{PARTIAL}"

    def begin(self, needed_bytes: int) -> None:
        """Make room for its files.

        Args:
            needed_bytes: that it will take, as far as is known.

        Raises:
            CheckpointError: the disk has less.
            OSError: the folder cannot be made.
        """
        self.abandon()
        free = shutil.disk_usage(self.folder).free
        if free < needed_bytes:
            raise CheckpointError(f"the disk has {free / 2**20:,.0f} MiB, {needed_bytes / 2**20:,.0f} MiB are needed")
        self.partial.mkdir()

    def finish(self, planned_steps: int, resumable: bool, batch: Batch) -> Manifest:
        """Return the manifest of the checkpoint, which stands in its place now.

        Args:
            planned_steps: of the whole run.
            resumable: whether training can go on from it.
            batch: how rows are shared out.

        Raises:
            OSError: something could not be brought to disk; what stood in its place still does.
        """
        manifest = seal(self.partial, self.step, planned_steps, resumable, batch)
        _put(self.partial, self.target)
        sync_folder(self.folder)
        # What stood there, if anything.
        shutil.rmtree(self.partial, ignore_errors=True)
        return manifest

    def abandon(self) -> None:
        """Remove what was written of it."""
        shutil.rmtree(self.partial, ignore_errors=True)


def rotate(folder: Path, newest: int, keep: int | None, protected: Collection[str]) -> None:
    """Remove old checkpoints, and broken ones, which the newest has made useless.

    Args:
        folder: of the run.
        newest: step of the one that was just written, which always stays.
        keep: how many finished ones stay at most; None or 0 keeps all.
        protected: names of those that stay whatever their age.
    """
    if not keep or keep < 0:
        return
    found = found_checkpoints(folder)
    # One of a later step was passed over when the run was resumed: it is broken.
    finished = [path.name for step, path in found if step <= newest and (path / MANIFEST_FILE).is_file()]
    kept = {f"{PREFIX}{newest}", *(name for name in finished if name in protected)}
    for name in finished:
        if len(kept) < keep:
            kept.add(name)
    for _, path in found:
        if path.name not in kept:
            _remove(path)


def tidy(folder: Path) -> None:
    """Remove what a run that was killed has left half written or half removed.

    Only who holds the run's folder may: another run's half is on its way.
    """
    for path in [*folder.glob(f".*{PARTIAL}"), *folder.glob(f".{PREFIX}*{_REMOVED}")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """Yield a folder whose files go into another at the end of the block, synced: no half-written one is ever there.

    Args:
        folder: that gets the files; what has the same name there is replaced.

    Raises:
        OSError: something could not be brought to disk.
    """
    partial = folder / f".saved{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        sync_files(partial)
        for path in sorted(partial.iterdir()):
            path.replace(folder / path.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(made: Path, place: Path) -> None:
    """Let a folder stand in its place; where one stands there, the two change places in one operation of the system."""
    if not place.exists():
        made.rename(place)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_HERE, os.fsencode(made), _HERE, os.fsencode(place), _EXCHANGE) == 0:
        return
    if (code := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(place))
    # This file system cannot; what is replaced was found broken, or the run would have gone on from there.
    _remove(place)
    made.rename(place)


def _remove(path: Path) -> None:
    """Remove a checkpoint so that no half of it ever looks like one."""
    aside = path.with_name(f".{path.name}{_REMOVED}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    # Else a loss of power could bring the name back, with some of its files gone.
    with suppress(OSError):
        sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)

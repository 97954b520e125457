"""Whether a checkpoint is what was written: every file that its manifest names, to the bit, and no other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.checkpoints.manifest import Manifest, ManifestError, digest, file_names, read_manifest

PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Verdict:
    """What was found of one checkpoint."""

    path: Path
    step: int
    """As its folder's name says."""
    problems: tuple[str, ...]
    """What is wrong with it, each in a few words; none of a good one."""
    manifest: Manifest | None
    """None where it cannot be read."""

    @property
    def good(self) -> bool:
        """Return whether training can go on from it."""
        return not self.problems

    def shown(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "name": self.path.name,
            "step": self.step,
            "good": self.good,
            "problems": list(self.problems),
            "written": self.manifest.written if self.manifest else None,
            "bytes": self.manifest.bytes if self.manifest else None,
        }


def found_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return step and path of all that is called a checkpoint in a run's folder, newest first; nothing is read."""
    numbered = ((path.name.removeprefix(PREFIX), path) for path in folder.glob(f"{PREFIX}*"))
    return sorted(((int(step), path) for step, path in numbered if step.isdecimal()), reverse=True)


def verify(path: Path) -> Verdict:
    """Return the verdict on a checkpoint, all of whose files are read.

    Args:
        path: its folder, `checkpoint-STEP`.
    """
    step = int(path.name.removeprefix(PREFIX))
    try:
        manifest = read_manifest(path)
    except ManifestError as error:
        return Verdict(path, step, (str(error),), None)
    problems = []
    if manifest.step != step:
        problems.append(f"it is of step {manifest.step}")
    if not manifest.resumable:
        problems.append("it holds weights alone (save_only_model): training cannot go on from it")
    there = set(file_names(path))
    problems += [f"{name}: the manifest does not name it" for name in sorted(there - manifest.files.keys())]
    problems += [wrong for name in sorted(manifest.files) if (wrong := _wrong(path, name, manifest))]
    return Verdict(path, step, tuple(problems), manifest)


def list_checkpoints(folder: Path) -> list[Verdict]:
    """Return the verdicts on all checkpoints in a run's folder, newest first."""
    return [verify(path) for _, path in found_checkpoints(folder)]


def newest_good(folder: Path) -> tuple[Verdict | None, list[Verdict]]:
    """Return the newest checkpoint that training can go on from, and the newer ones that it cannot.

    Args:
        folder: of the run.
    """
    skipped: list[Verdict] = []
    for _, path in found_checkpoints(folder):
        verdict = verify(path)
        if verdict.good:
            return verdict, skipped
        skipped.append(verdict)
    return None, skipped


def _wrong(folder: Path, name: str, manifest: Manifest) -> str | None:
    """Return what is wrong with a file that the manifest names; None where nothing is."""
    path, wanted = folder / name, manifest.files[name]
    if path.is_symlink() or not path.is_file():
        return f"{name}: {'missing' if not path.is_symlink() and not path.exists() else 'not a plain file'}"
    try:
        if (size := path.stat().st_size) != wanted.bytes:
            return f"{name}: {size} bytes, {wanted.bytes} were written"
        return None if digest(path) == wanted.sha256 else f"{name}: other bytes than were written"
    except OSError as error:
        return f"{name}: {error.strerror}"

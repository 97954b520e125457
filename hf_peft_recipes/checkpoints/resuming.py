"""Where a run goes on from: its newest checkpoint that is whole, with as many rows a step as before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.checkpoints.manifest import Batch
from hf_peft_recipes.checkpoints.verdicts import Verdict, newest_good
from hf_peft_recipes.errors import UserError


@dataclass(frozen=True)
class Resumption:
    """What `--resume` found."""

    checkpoint: Verdict | None
    """Where training goes on from; None where it was ended before its first checkpoint, and begins anew."""
    skipped: tuple[Verdict, ...]
    """Newer checkpoints that are not what was written."""

    @property
    def path(self) -> str | None:
        """Return the checkpoint's folder, as upstream's trainer takes it."""
        return str(self.checkpoint.path) if self.checkpoint else None

    @property
    def batch(self) -> Batch | None:
        """Return how rows were shared out; None where nothing was trained."""
        return self.checkpoint.manifest.batch if self.checkpoint and self.checkpoint.manifest else None

    def told(self) -> list[str]:
        """Return what a user is told, a line each."""
        lines = [f"skipped {one.path.name}: {one.problems[0]}" for one in self.skipped]
        if self.checkpoint is None:
            return [*lines, "the run was ended before its first checkpoint, and begins anew"]
        manifest = self.checkpoint.manifest
        planned = f" of {manifest.planned_steps}" if manifest else ""
        return [*lines, f"going on from {self.checkpoint.path.name}: step {self.checkpoint.step}{planned}"]

    def shown(self) -> dict[str, Any]:
        """Return it as a run's record has it."""
        return {
            "step": self.checkpoint.step if self.checkpoint else 0,
            "skipped": [{"name": one.path.name, "problems": list(one.problems)} for one in self.skipped],
        }


def find_resumption(folder: Path, begun: bool) -> Resumption:
    """Return where the run in `folder` goes on.

    Args:
        folder: of the run.
        begun: whether a run is known to have begun there, so that without any checkpoint it can begin anew.

    Raises:
        UserError: there is no checkpoint, or none that is whole.
    """
    good, skipped = newest_good(folder)
    if good is None and skipped:
        listed = "; ".join(f"{one.path.name}: {one.problems[0]}" for one in skipped)
        raise UserError(f"--resume: no checkpoint in {str(folder)!r} is whole ({listed}); --overwrite begins anew")
    if good is None and not begun:
        raise UserError(f"--resume: {str(folder)!r} holds no checkpoint")
    return Resumption(good, tuple(skipped))


def share_rows(batch: Batch, processes: int, per_device_train_batch_size: int) -> int:
    """Return the gradient accumulation steps that keep the rows of an optimizer step.

    Args:
        batch: how rows were shared out when the checkpoint was written.
        processes: that go on.
        per_device_train_batch_size: of each.

    Raises:
        UserError: they cannot be shared evenly.
    """
    steps, rest = divmod(batch.rows, processes * per_device_train_batch_size)
    if rest or not steps:
        raise UserError(
            f"--resume: the run learns from {batch.rows} rows a step, which {processes} processes with "
            f"--per_device_train_batch_size {per_device_train_batch_size} cannot share evenly"
        )
    return steps

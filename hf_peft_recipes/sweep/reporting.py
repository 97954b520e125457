"""What a trial says while it trains: its held-out loss at each evaluation, and whether it is worth going on with."""

import os
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import Trial
from transformers import TrainerCallback

from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.sweep.plan import HELD_OUT_LOSS
from hf_peft_recipes.sweep.study import open_study


class PrunedError(RecipeError):
    """A trial is behind the others, and is given up."""


class Reporter(TrainerCallback):
    """Reports a trial's held-out loss to its study, and ends the run where the study says that it is behind.

    Args:
        path: of the study's file.
        number: of the trial.
        parent: the process that the run ends with; None for this one.
    """

    def __init__(self, path: Path, number: int, parent: int | None = None) -> None:
        study = open_study(path)
        self._trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
        # A study whose metric is better when higher compares what is reported in that direction too.
        self._sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        self._losses: list[float] = []
        self._parent = parent

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End with the sweep: a run that nobody waits for would train beside the one that takes its place."""
        if self._parent is not None and os.getppid() != self._parent:
            raise RecipeError("the sweep that this trial belongs to is gone")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Report the loss; evaluations are counted, since steps of different batches are not alike.

        Raises:
            PrunedError: the trial is behind.
        """
        loss = (metrics or {}).get(HELD_OUT_LOSS)
        if loss is None:
            return
        self._losses.append(float(loss))
        self._trial.report(self._sign * float(loss), len(self._losses))
        self._trial.set_user_attr("evaluations", self._losses)
        # The last evaluation has nothing left to spare.
        if state.global_step < state.max_steps and self._trial.should_prune():
            self._trial.set_user_attr("pruned", True)
            raise PrunedError(f"held-out loss {loss:.4f}, behind the median of the trials before it")


def reporter(place: str) -> Reporter:
    """Return the callback of a trial that runs in a process of its own.

    Args:
        place: `study.db:3`, the study's file and the trial's number.
    """
    path, _, number = place.rpartition(":")
    return Reporter(Path(path), int(number), os.getppid())

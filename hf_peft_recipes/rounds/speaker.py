"""The model that a round asks, loaded when it is first asked for and given up before another process trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_peft_recipes.feedback.record import Writer
from hf_peft_recipes.generation import TransformersPolicy
from hf_peft_recipes.measure.memory import release_free_memory
from hf_peft_recipes.rounds.course import Course, open_model
from hf_peft_recipes.trained import TrainedModel


class Speaker:
    """One model of a run."""

    def __init__(self, course: Course, run: Path | None, record: Mapping[str, Any] | None) -> None:
        """Args:
        course: of the run.
        run: the folder of the training that made it; None for the model that the first round begins with.
        record: of that training.
        """
        self._course = course
        self._run = run
        self._record = record
        self._opened: tuple[TrainedModel, Writer] | None = None

    @property
    def trained(self) -> TrainedModel:
        """The model."""
        return self._open()[0]

    @property
    def writer(self) -> Writer:
        """What its answers are marked with."""
        return self._open()[1]

    @property
    def policy(self) -> TransformersPolicy:
        """What answers for it."""
        trained = self.trained
        return TransformersPolicy(trained.model, self._course.renderer, trained.stop_ids)

    def release(self) -> None:
        """Give the model up."""
        self._opened = None
        release_free_memory()

    def _open(self) -> tuple[TrainedModel, Writer]:
        if self._opened is None:
            self._opened = open_model(self._course, self._run, self._record)
        return self._opened

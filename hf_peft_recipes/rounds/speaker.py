"""The model that a round asks, loaded when it is first asked for and given up before another process trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_peft_recipes.feedback.record import Writer
from hf_peft_recipes.generation import Served, make_policy
from hf_peft_recipes.generation.engines import Engine
from hf_peft_recipes.generation.policy import TransformersPolicy
from hf_peft_recipes.measure.memory import release_free_memory
from hf_peft_recipes.rounds.course import Course, named_adapter, open_model
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
        self._engine: Engine | None = None

    @property
    def trained(self) -> TrainedModel:
        """The model."""
        return self._open()[0]

    @property
    def writer(self) -> Writer:
        """What its answers are marked with."""
        return self._open()[1]

    @property
    def policy(self) -> Engine:
        """What draws its answers: the recipe's engine."""
        if self._engine is None:
            course, (trained, _) = self._course, self._open()
            adapter = self._run or named_adapter(course.recipe)
            served = Served(
                course.renderer, trained.stop_ids, trained.model, course.is_bf16, course.base.base,
                (course.recipe.section("model") or {}).get("revision"), adapter if trained.has_adapter else None,
                int(course.recipe.value("adapter.r") or 0),
            )  # fmt: skip
            self._engine = make_policy(course.settings.engine, served, course.settings.engine_options)
        return self._engine

    @property
    def here(self) -> TransformersPolicy:
        """The model itself, whichever engine draws its answers: what says how likely it holds them."""
        trained = self.trained
        return TransformersPolicy(trained.model, self._course.renderer, trained.stop_ids, bf16=self._course.is_bf16)

    def release(self) -> None:
        """Give the model up."""
        self._opened = self._engine = None
        release_free_memory()

    def _open(self) -> tuple[TrainedModel, Writer]:
        if self._opened is None:
            self._opened = open_model(self._course, self._run, self._record)
        return self._opened

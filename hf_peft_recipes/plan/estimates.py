"""What variations of one job take in memory and time, each walk through a step made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hf_peft_recipes.plan.evaluating import Evaluation, plan_evaluation
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.memory import Memory, memory_of
from hf_peft_recipes.plan.profiles import Profile
from hf_peft_recipes.plan.shapes import Shape
from hf_peft_recipes.plan.step import FewLayers, StepSizes, few_of, walk_few, walk_step
from hf_peft_recipes.plan.throughput import expect_speed

Sized = TypeVar("Sized")

FALLBACK = Profile(
    300e12, 19.5e12, 1.5e12, "no rates of this device are known; those of an A100 stand in for the ratios"
)


class Estimates:
    """What variations of one job take: each step is walked through once, however many variations share it."""

    def __init__(self, shape: Shape, profile: Profile | None) -> None:
        self.shape = shape
        self._rates = profile or FALLBACK
        self._walked: dict[tuple[Any, ...], Any] = {}

    def memory(self, job: Job, training_only: bool = False) -> Memory:
        """Return what a job takes."""
        evaluation = Evaluation()
        if not training_only:
            key = ("evaluation", job.evaluation.get("batch_size"), job.length, job.bits, job.attention)
            evaluation = self._once(key, lambda: plan_evaluation(job, self.shape))
        return memory_of(job, self.step(job), evaluation)

    def seconds(self, job: Job) -> float:
        """Return the time a token; where the device's rates are not known, only ratios of it mean something."""
        return 1 / expect_speed(job, self.shape, self.step(job), self._rates).tokens_per_second

    def step(self, job: Job) -> StepSizes:
        """Return the sizes of a job's step."""
        key = ("step", *_varied(job), job.recompute)
        return self._once(key, lambda: walk_step(job, self.shape, self._few)).under(job.optimizer)

    def _few(self, job: Job, shape: Shape) -> FewLayers:
        return self._once(("few", *_varied(job), few_of(job, shape)), lambda: walk_few(job, shape))

    def _once(self, key: tuple[Any, ...], walk: Callable[[], Sized]) -> Sized:
        if key not in self._walked:
            self._walked[key] = walk()
        found: Sized = self._walked[key]
        return found


def _varied(job: Job) -> tuple[Any, ...]:
    """Return what `fit` changes of a job that its step depends on; how many layers are computed again left out."""
    return job.batch, job.accumulation > 1, job.length, job.checkpointing, job.offloads, job.attention, job.bits

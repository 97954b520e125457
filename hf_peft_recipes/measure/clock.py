"""The steps of a run: how long each took, and how many tokens it really saw."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from hf_peft_recipes.measure.phases import Phases

KEPT_STEPS = 1000
"""So many steps stand one by one in a run's record, the last ones."""
PERCENTILES = (10, 50, 90, 99)


@dataclass(frozen=True)
class Step:
    """One optimizer step, over all processes."""

    seconds: float
    tokens: int
    """That are no padding."""
    supervised: int
    """That carry loss."""
    documents: int
    pairs: int
    """The squares of the documents' lengths, summed: what attention's arithmetic grows with."""


class StepClock(TrainerCallback):
    """Measures the steps of a run. Evaluation, saving and logging between steps are not counted, loading data is."""

    def __init__(self, phases: Phases | None = None) -> None:
        self.phases = phases or Phases()
        self.steps: list[Step] = []
        """Filled in when training ends."""
        self.first_step_seconds: float | None = None
        """From the start of the process to the end of the first optimizer step."""
        self._counts: list[torch.Tensor] = []
        self._marks: list[tuple[Any, Any]] = []
        self._mark: Any = None
        self._summed = (0, 0)

    @property
    def done(self) -> int:
        """Return the number of steps that ended."""
        return len(self._marks)

    def tokens_seen(self) -> int:
        """Return how many tokens this process's steps were fed so far, padding left out; waits for the GPU."""
        number, tokens = self._summed
        tokens += sum(int(count[0]) for count in self._counts[number:])
        self._summed = len(self._counts), tokens
        return tokens

    def watch(self, trainer: Any) -> None:
        """Count what the trainer's steps are fed, from now on."""
        fetch, loss = trainer.get_batch_samples, trainer.compute_loss

        def counted(*arguments: Any) -> Any:
            batches, items = fetch(*arguments)
            if batches and isinstance(batches[0], list):
                # Prompts: what is fed is known once the model has answered them.
                self._counts.append(torch.zeros(4, dtype=torch.long))
            elif batches:
                self._counts.append(torch.stack([count_batch(batch) for batch in batches]).sum(0))
            return batches, items

        def answered(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            if "completion_ids" in inputs and model.training:
                self._counts[-1] = self._counts[-1] + count_batch(_whole(inputs)).cpu()
            return loss(model, inputs, *arguments, **options)

        trainer.get_batch_samples, trainer.compute_loss = counted, answered

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock; the trainer's own set-up belongs to the phase that ends with the first step."""
        # What was fed to a step that failed belongs to none, where training goes on in this process.
        del self._counts[len(self._marks) :]
        self._summed = (0, 0)
        self._mark = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the step's time; the last step is logged whatever the interval."""
        now = _now()
        self._marks.append((self._mark, now))
        self._mark = now
        self.phases.lap("train")
        if self.first_step_seconds is None:
            self.first_step_seconds = self.phases.since_start()
        if state.global_step >= state.max_steps:
            control.should_log = True
        if control.should_evaluate or control.should_save:
            # The holes that a step leaves do not fit what these need, which would stand on top of them: on a CPU the
            # peak of evaluation is lower by a step's activations.
            self.phases.settle()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave logging out of the next step's time."""
        self._mark = _now()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave evaluation out of the next step's time."""
        self.phases.lap("evaluate")
        self._mark = _now()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave saving out of the next step's time."""
        self.phases.lap("save")
        self._mark = _now()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Bring times and counts of all processes together."""
        self.phases.lap("train")
        seconds = [_seconds(start, end) for start, end in self._marks]
        # Batches that were fetched to be skipped, when a run goes on, belong to no step.
        counts = [[int(number) for number in count] for count in self._counts[-len(seconds) :]] if seconds else []
        everywhere = gather_object([counts]) if args.world_size > 1 else [counts]
        for step, second in enumerate(seconds):
            numbers = (sum(column) for column in zip(*(counts[step] for counts in everywhere), strict=True))
            self.steps.append(Step(second, *numbers))

    def timed(self, warmup: int = 1) -> Sequence[Step]:
        """Return the steps after the first ones, which prepare what later ones find; all where there are no more."""
        return self.steps[warmup:] or self.steps

    def result(self) -> dict[str, Any]:
        """Return rates and times, as `measured` of a run's record has them."""
        timed, kept = self.timed(), self.steps[-KEPT_STEPS:]
        return {
            **rates(timed),
            "steps": len(self.steps),
            "train_seconds": sum(step.seconds for step in self.steps),
            "first_step_seconds": self.first_step_seconds,
            "series": {
                name: [getattr(step, name) for step in kept]
                for name in ("seconds", "tokens", "supervised", "documents", "pairs")
            },
        }


def rates(steps: Sequence[Step]) -> dict[str, Any]:
    """Return tokens, supervised tokens and documents a second, the median seconds of a step and their percentiles.

    Args:
        steps: those that count; with none, every figure is None.
    """
    seconds = sorted(step.seconds for step in steps)
    total = sum(seconds)

    def rate(name: str) -> float | None:
        return sum(getattr(step, name) for step in steps) / total if total else None

    return {
        "tokens_per_second": rate("tokens"),
        "supervised_tokens_per_second": rate("supervised"),
        "documents_per_second": rate("documents"),
        "step_seconds": statistics.median(seconds) if seconds else None,
        "step_seconds_percentiles": {
            str(percent): seconds[min(len(seconds) * percent // 100, len(seconds) - 1)] for percent in PERCENTILES
        } if seconds else {},
    }  # fmt: skip


def count_batch(batch: Any) -> torch.Tensor:
    """Return tokens, supervised tokens, documents and squared lengths of a micro-batch, without waiting for the GPU.

    Args:
        batch: what the model is fed: `input_ids` of (rows, positions), with `position_ids` that begin again at every
            document, or an `attention_mask` of the same size; `labels` or `completion_mask`, where there are any; or
            all of these twice, as `chosen_…` and `rejected_…`.
    """
    if "input_ids" not in batch:
        # The two sides of pairs, each a batch of its own.
        sides = [
            {name.removeprefix(side): value for name, value in batch.items() if name.startswith(side)}
            for side in ("chosen_", "rejected_")
        ]
        return torch.stack([count_batch(side) for side in sides]).sum(0)
    ids, mask, positions = batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids")
    if mask is None or mask.dim() != 2:
        mask = torch.ones_like(ids)
    if positions is None:
        positions = mask.cumsum(-1) - 1
    real = mask.bool()
    learned = batch["labels"] != -100 if "labels" in batch else batch.get("completion_mask", torch.zeros_like(ids))
    # The first token of a row has no one to predict it; labels of other sizes than the ids are no shifted ids.
    supervised = (learned[:, 1:] if learned.shape == ids.shape else learned).sum()
    # The squares are the sums of odd numbers.
    return torch.stack(
        [real.sum(), supervised, ((positions == 0) & real).sum(), ((2 * positions + 1) * real).sum()]
    ).long()  # fmt: skip


def _whole(inputs: Any) -> dict[str, torch.Tensor]:
    """Return prompts with their answers as any other batch: ids, mask, and which tokens are learned, (rows, tokens)."""
    prompts, answers = inputs["prompt_mask"], inputs["completion_mask"]
    return {
        "input_ids": torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
        "attention_mask": torch.cat([prompts, answers], 1),
        "completion_mask": torch.cat([torch.zeros_like(prompts), answers], 1),
    }


def _now() -> Any:
    """Return a point in time: on a GPU an event in its stream, so that nobody has to wait for it."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3

"""Training that goes on after a step that cannot be taken: one that is not finite, or does not fit into memory.

In one process the same trainer is trained once more from a checkpoint. What that takes up is what `--resume` takes up
in a new process, so the steps that follow are the same.
"""

import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from hf_peft_recipes.checkpoints import Verdict, newest_good
from hf_peft_recipes.checkpoints.verdicts import PREFIX
from hf_peft_recipes.errors import NonFiniteError, OutOfMemoryError
from hf_peft_recipes.finite import FiniteGuard
from hf_peft_recipes.fresh_process import tells_of_memory
from hf_peft_recipes.measure.memory import release_free_memory
from hf_peft_recipes.preflight import RunRequest
from hf_peft_recipes.results import earlier_record
from hf_peft_recipes.spec import ResolvedRecipe

ROLLBACK, SMALLER = "rollback", "smaller_micro_batch"
"""Kinds of recoveries in a run's record."""

Recovery = dict[str, Any]
"""One of them, as the record has it."""

TIED_ROWS = {
    "judged": "its loss is of the rows of a micro-batch together",
    "prompts": "its answers are drawn for several micro-batches together",
}
"""Shape of rows to the reason why fewer of them at a time would be another run."""


@dataclass(frozen=True)
class Policy:
    """What becomes of a run that cannot take a step."""

    rolls_back: bool = False
    max_rollbacks: int = 3
    halves: bool = True
    tied: str = ""
    """Why fewer rows at a time would be another run; empty where they would not."""
    advise: Callable[[], str] = str
    """Says what would fit into memory."""


@dataclass(frozen=True)
class _Failure:
    """What is kept of an error. Its traceback holds all that the step had in memory."""

    said: str
    facts: Mapping[str, Any]
    is_memory: bool
    within: str | None


def train(
    trainer: Any,
    checkpoint: str | None,
    policy: Policy,
    earlier: Iterable[Recovery] = (),
    note: Callable[[Recovery], None] = lambda _: None,
) -> None:
    """Train to the end.

    Args:
        trainer: ready to train, with a `FiniteGuard` that watches it.
        checkpoint: to go on from; None begins.
        policy: what becomes of the run where it cannot take a step.
        earlier: what was done about such steps before the run was cut off.
        note: is told what is done about one, before training goes on.

    Raises:
        NonFiniteError: a step is not finite, and is not to be left out, or no more are.
        OutOfMemoryError: a step does not fit into memory, and nothing makes it fit.
    """
    guard = next(one for one in trainer.callback_handler.callbacks if isinstance(one, FiniteGuard))
    done = list(earlier)
    for one in done:
        _take_up(trainer, guard, one)
    kept = _Kept(trainer)
    if policy.rolls_back:
        trainer.add_callback(kept)
    while failure := _attempt(trainer, guard, checkpoint):
        _clear(trainer)
        made = (_halve if failure.is_memory else _roll_back)(trainer, failure, policy, done)
        start = _where_from(trainer, failure, kept)
        checkpoint, found = str(start.path), made | {"from_step": start.step}
        done.append(found)
        _take_up(trainer, guard, found)
        if trainer.is_world_process_zero():
            print(f"warning: {told(found)}", file=sys.stderr, flush=True)
        note(found)
    kept.remove_unwanted()


def policy_of(recipe: ResolvedRecipe, request: RunRequest) -> Policy:
    """Return what becomes of a run of the recipe that cannot take a step."""
    return Policy(
        request.on_nonfinite == "rollback", request.max_rollbacks, request.on_oom == "halve",
        TIED_ROWS.get(recipe.shape, ""), request.advise,
    )  # fmt: skip


def read_recoveries(folder: Path) -> list[Recovery]:
    """Return what was done in the run in `folder` before it was cut off; nothing where its record cannot be read."""
    earlier: list[Recovery] = earlier_record(folder).get("recoveries", [])
    return earlier


def told(recovery: Mapping[str, Any]) -> str:
    """Return what was done, in one line."""
    if recovery["kind"] == ROLLBACK:
        return f"{recovery['error']}; going on from step {recovery['from_step']}, step {recovery['step']} is left out"
    return (
        f"step {recovery['step']} ran out of memory ({recovery['error']}); going on from step {recovery['from_step']} "
        f"with --per_device_train_batch_size {recovery['per_device_train_batch_size']} "
        f"--gradient_accumulation_steps {recovery['gradient_accumulation_steps']}, as many rows a step"
    )


def halved(rows: int) -> int:
    """Return the largest share of a micro-batch that is half of it at most and divides it evenly."""
    return next(part for part in range(max(rows // 2, 1), 0, -1) if rows % part == 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left: of CUDA, of torch's CPU allocator, of Python."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and tells_of_memory(str(error))


class _Kept(TrainerCallback):
    """Writes the checkpoints that training goes on from, where the run itself has none: of its start, of a step."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._written: list[Path] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep what training starts from."""
        if state.global_step == 0:
            self.write()

    def write(self) -> None:
        """Write a checkpoint of the state in memory, unless there is one."""
        folder = Path(self._trainer.args.output_dir) / f"{PREFIX}{self._trainer.state.global_step}"
        if not folder.is_dir():
            self._trainer._save_checkpoint(self._trainer.model_wrapped, trial=None)
            self._trainer.settle()
            self._written.append(folder)

    def remove_unwanted(self) -> None:
        """Remove them from the folder of a run that was to leave no checkpoints, once it needs them no more."""
        if str(self._trainer.args.save_strategy.value) == "no" and self._trainer.is_world_process_zero():
            for folder in self._written:
                shutil.rmtree(folder, ignore_errors=True)


def _attempt(trainer: Any, guard: FiniteGuard, checkpoint: str | None) -> _Failure | None:
    """Train, and return what went wrong; None where training came to its end.

    Raises:
        OutOfMemoryError: memory ran out elsewhere than in a step.
    """
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except NonFiniteError as error:
        return _Failure(str(error), error.facts, False, guard.within)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:300] or type(error).__name__
        if guard.within is None:
            raise OutOfMemoryError(
                f"out of memory at step {trainer.state.global_step}, between steps: {said}"
            ) from None
        return _Failure(said, {}, True, guard.within)
    return None


def _roll_back(trainer: Any, failure: _Failure, policy: Policy, done: list[Recovery]) -> Recovery:
    """Return the recovery that leaves a step out.

    Raises:
        NonFiniteError: it is not to be left out.
    """
    number = sum(one["kind"] == ROLLBACK for one in done)
    if not policy.rolls_back or "step" not in failure.facts:
        raise NonFiniteError(failure.said, failure.facts)
    if number >= policy.max_rollbacks:
        raise NonFiniteError(
            f"{failure.said}; steps left out before: {number}, and --max_rollbacks allows no more", failure.facts
        )
    return {"kind": ROLLBACK, "error": failure.said, **failure.facts}


def _halve(trainer: Any, failure: _Failure, policy: Policy, done: list[Recovery]) -> Recovery:
    """Return the recovery that takes fewer rows at a time.

    Raises:
        OutOfMemoryError: there are no fewer, or they would make another run of it.
    """
    arguments, step = trainer.args, trainer.state.global_step + 1
    rows, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    less = halved(rows)
    flags = f"--per_device_train_batch_size {less} --gradient_accumulation_steps {accumulation * (rows // less)}"
    said = f"step {step} ran out of memory ({failure.said})"
    if not policy.halves:
        raise OutOfMemoryError(said)
    if rows == 1:
        raise OutOfMemoryError(f"{said} with one row at a time{policy.advise()}")
    if policy.tied:
        raise OutOfMemoryError(f"{said}; fewer rows at a time would be another run: {policy.tied}{policy.advise()}")
    if arguments.world_size > 1:
        # The others wait in the middle of their step for what this process will never send.
        raise OutOfMemoryError(f"{said} in one process of several, which cannot go on together; --resume with {flags}")
    if less * (rows // less) != rows or not _keeps_steps(trainer, less, accumulation * (rows // less)):
        raise OutOfMemoryError(f"{said}; with {flags} an epoch would be of other steps{policy.advise()}")
    return {
        "kind": SMALLER, "step": step, "error": failure.said, "per_device_train_batch_size": less,
        "gradient_accumulation_steps": accumulation * (rows // less),
    }  # fmt: skip


def _keeps_steps(trainer: Any, rows: int, accumulation: int) -> bool:
    """Return whether an epoch has as many optimizer steps with other micro-batches: not where the last is dropped."""
    arguments = trainer.args
    before = (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps)
    steps = []
    for pair in (before, (rows, accumulation)):
        _set_micro_batch(trainer, *pair)
        steps.append(trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())[1])
    _set_micro_batch(trainer, *before)
    return steps[0] == steps[1]


def _set_micro_batch(trainer: Any, rows: int, accumulation: int) -> None:
    arguments = trainer.args
    arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = rows, accumulation
    trainer._train_batch_size = arguments.train_batch_size


def _take_up(trainer: Any, guard: FiniteGuard, recovery: Recovery) -> None:
    """Let the trainer do what was decided, now or before the run was cut off."""
    if recovery["kind"] == ROLLBACK:
        guard.leave_out([recovery["step"]])
        return
    arguments = trainer.args
    rows, accumulation = recovery["per_device_train_batch_size"], recovery["gradient_accumulation_steps"]
    now = arguments.per_device_train_batch_size
    # Another number of processes, or other flags, share the rows of a step as they will.
    if rows < now and rows * accumulation == now * arguments.gradient_accumulation_steps:
        _set_micro_batch(trainer, rows, accumulation)


def _where_from(trainer: Any, failure: _Failure, kept: _Kept) -> Verdict:
    """Return the checkpoint to go on from, the same in all processes.

    Raises:
        NonFiniteError, OutOfMemoryError: there is none.
    """
    if failure.is_memory and failure.within == "step":
        # Nothing has touched the weights since the last step that ended.
        kept.write()
    found: list[Verdict | None] = [None]
    if trainer.is_world_process_zero():
        found[0], skipped = newest_good(Path(trainer.args.output_dir))
        for one in skipped:
            print(f"warning: skipped {one.path.name}: {one.problems[0]}", file=sys.stderr, flush=True)
    if trainer.args.world_size > 1:
        broadcast_object_list(found)
    if found[0] is None:
        said = f"{failure.said}; there is no checkpoint to go on from"
        raise OutOfMemoryError(said) if failure.is_memory else NonFiniteError(said, failure.facts)
    return found[0]


def _clear(trainer: Any) -> None:
    """Bring the trainer back to where it was before it was trained, but for weights and optimizer, which are loaded."""
    trainer.model_wrapped.zero_grad()
    # What TRL has summed up for the next line of its log is of steps that are taken again.
    for figures in getattr(trainer, "_metrics", {}).values():
        figures.clear()
    if hasattr(trainer, "_step"):
        trainer._step, trainer._buffered_inputs = 0, None
    if trainer.neftune_noise_alpha is not None:
        from transformers.integrations import deactivate_neftune

        deactivate_neftune(trainer.model, trainer.neftune_hook_handle, trainer.accelerator)
    release_free_memory()

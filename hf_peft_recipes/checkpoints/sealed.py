"""The trainer's part: it writes all of a checkpoint beside its place, and goes on where one cannot be written."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers.trainer_callback import ExportableState

from hf_peft_recipes.checkpoints.disk import disk_problem
from hf_peft_recipes.checkpoints.manifest import Batch
from hf_peft_recipes.checkpoints.verdicts import PREFIX, verify
from hf_peft_recipes.checkpoints.writing import CheckpointError, Writing, rotate
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.results import open_weights

_STATE_FILE = "trainer_state.json"
_UNWANTED = ("training_args.bin", "README.md")
"""A pickle that a token would stand in, and a card that names a path of this machine; nothing reads them."""
_STATES = 2
"""Tensors of an optimizer for each that trains, at most, in its dtype: Adam's."""
_SLACK = 1.05
_WRITERS_ERRORS = (OSError, RuntimeError, SafetensorError, CheckpointError)
"""What the system, torch and safetensors raise where a file cannot be written."""


@runtime_checkable
class CheckpointPart(Protocol):
    """A callback of the trainer with something of its own to keep in a checkpoint."""

    def write_part(self, folder: Path) -> None:
        """Write it into the folder; the first process alone is asked."""


@dataclass
class CheckpointAccount:
    """What became of a run's checkpoints."""

    written: list[int] = field(default_factory=list)
    """Their steps."""
    failed: dict[int, str] = field(default_factory=dict)
    """Step to the reason why there is none."""
    seconds: list[float] = field(default_factory=list)
    """That writing each of `written` took."""
    bytes: int = 0
    """Of the last one."""

    def shown(self) -> dict[str, Any]:
        """Return it as a run's record has it."""
        failed = {str(step): why for step, why in self.failed.items()}
        return {"written": self.written, "failed": failed, "seconds": self.seconds, "bytes": self.bytes}


class SealedCheckpoints:
    """A trainer, mixed in before upstream's, whose checkpoints are whole or not there.

    Upstream writes into the checkpoint's own folder: whatever cuts that off leaves a half one that looks whole.
    """

    args: Any
    state: Any
    callback_handler: Any

    @property
    def checkpoints(self) -> CheckpointAccount:
        """Return what became of the checkpoints so far."""
        account: CheckpointAccount = self.__dict__.setdefault("_checkpoint_account", CheckpointAccount())
        return account

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint of this step; where that fails, say so, and leave those that there are."""
        folder, step, started = Path(self.args.output_dir), int(self.state.global_step), time.perf_counter()
        writing, account, first = Writing(folder, step), self.checkpoints, bool(self.args.should_save)
        best = self._point_to_best(folder, step)
        problem = self._attempt(lambda: writing.begin(self._needed_bytes()) if first else None)
        problem = problem or self._attempt(lambda: self._write(writing.partial))
        problem = problem or self._attempt(lambda: self._finish(writing) if first else None)
        if problem is None:
            if first and (wrong := self._attempt_alone(lambda: self._rotate(writing))):
                print(f"warning: an old checkpoint could not be removed: {wrong}", file=sys.stderr, flush=True)
            account.written.append(step)
            account.failed.pop(step, None)
            account.seconds.append(time.perf_counter() - started)
            return
        account.failed[step] = problem
        self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint = best
        if first:
            self._attempt_alone(writing.abandon)
            last = f"the last one is that of step {account.written[-1]}" if account.written else "there is none yet"
            print(f"warning: no checkpoint at step {step}: {problem}; {last}", file=sys.stderr, flush=True)

    def _load_callback_state(self) -> None:
        """Take up what callbacks have kept, and where the best checkpoint stands now; called once the state is read.

        Upstream makes callbacks anew, in another order; it keeps a path that holds no more once the folder is moved,
        and loads whatever lies there.
        """
        for one in self.callback_handler.callbacks:
            kept = self.state.stateful_callbacks.get(type(one).__name__)
            if isinstance(one, ExportableState) and isinstance(kept, dict):
                for attribute, value in kept["attributes"].items():
                    setattr(one, attribute, value)
        if not self.state.best_global_step:
            return
        best = verify(Path(self.args.output_dir) / f"{PREFIX}{self.state.best_global_step}")
        if best.good:
            self.state.best_model_checkpoint = str(best.path)
            return
        print(
            f"warning: the best checkpoint is lost: {best.path.name}: {best.problems[0]}", file=sys.stderr, flush=True
        )
        self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None

    def _write(self, folder: Path) -> None:
        """Write every file: weights first, then what training goes on from, the state of the trainer last."""
        trainer: Any = self
        trainer.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            trainer._save_optimizer_and_scheduler(str(folder))
            trainer._save_scaler(str(folder))
            trainer._save_rng_state(str(folder))
        if not self.args.should_save:
            return
        open_weights(folder)
        for name in _UNWANTED:
            (folder / name).unlink(missing_ok=True)
        callbacks = [*self.callback_handler.callbacks, trainer.control]
        for one in (one for one in callbacks if isinstance(one, ExportableState)):
            states, name = self.state.stateful_callbacks, type(one).__name__
            if isinstance(states[name], list):
                states[name].append(one.state())
            else:
                states[name] = one.state()
        for one in callbacks:
            if isinstance(one, CheckpointPart):
                one.write_part(folder)
        self.state.save_to_json(str(folder / _STATE_FILE))

    def _finish(self, writing: Writing) -> None:
        arguments = self.args
        batch = Batch(
            arguments.world_size, arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        )  # fmt: skip
        manifest = writing.finish(int(self.state.max_steps), not arguments.save_only_model, batch)
        self.checkpoints.bytes = manifest.bytes

    def _rotate(self, writing: Writing) -> None:
        best = Path(self.state.best_model_checkpoint or "").name
        rotate(writing.folder, writing.step, self.args.save_total_limit, {best})

    def _point_to_best(self, folder: Path, step: int) -> tuple[Any, Any, Any]:
        """Let the state name the best checkpoint; return what it is to say where this one cannot be written."""
        state, former = self.state, self.__dict__.get("_best", (None, None, None))
        if state.best_global_step:
            best = folder / f"{PREFIX}{state.best_global_step}"
            if state.best_global_step == step or best.is_dir():
                state.best_model_checkpoint = str(best)
        now = (state.best_metric, state.best_global_step, state.best_model_checkpoint)
        if state.best_global_step != step:
            self.__dict__["_best"] = now
            return now
        return former

    def _needed_bytes(self) -> int:
        """Return what this checkpoint will take: what the last one took, else what trains, three times."""
        if self.checkpoints.bytes:
            return int(self.checkpoints.bytes * _SLACK)
        trainer: Any = self
        trained = sum(one.numel() * one.element_size() for one in trainer.model.parameters() if one.requires_grad)
        return int(trained * (1 + (0 if self.args.save_only_model else _STATES)) * _SLACK)

    def _attempt(self, action: Callable[[], None]) -> str | None:
        """Return what went wrong in any of the processes, the same in all of them; None where nothing did."""
        problem = self._attempt_alone(action)
        if self.args.world_size == 1:
            return problem
        return next((told for told in gather_object([problem]) if told), None)

    @staticmethod
    def _attempt_alone(action: Callable[[], None]) -> str | None:
        try:
            action()
        except _WRITERS_ERRORS as error:
            if isinstance(error, RecipeError) and not isinstance(error, CheckpointError):
                raise
            return " ".join(str(error).split()) or type(error).__name__
        except Exception as error:
            # tokenizers raises a bare Exception.
            if disk_problem(error) is None:
                raise
            return str(error)
        return None

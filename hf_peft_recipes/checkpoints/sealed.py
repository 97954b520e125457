"""The trainer's part: it writes all of a checkpoint beside its place, and goes on where one cannot be written."""

import sys
import threading
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
    """That training waited for each of `written`."""
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

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Return what upstream does; the last checkpoint is in its place by then."""
        upstream: Any = super()
        try:
            result = upstream.train(*arguments, **options)
        except BaseException:
            # The other processes may be anywhere, and cannot be asked.
            self.settle(together=False)
            raise
        self.settle()
        return result

    def settle(self, together: bool = True) -> None:
        """Wait for the checkpoint that is being sealed, if one is, and tell what became of it.

        Args:
            together: whether all processes are here, so that the others hear what the first one knows.
        """
        sealing: _Sealing | None = self.__dict__.pop("_sealing", None)
        if sealing is None:
            return
        problem = sealing.result()
        if together:
            problem = self._agree(problem)
        if problem is not None:
            self._fail(sealing.writing, problem, sealing.former_best)
            return
        account = self.checkpoints
        account.written.append(sealing.writing.step)
        account.failed.pop(sealing.writing.step, None)
        account.seconds.append(sealing.waited_seconds)
        account.bytes = sealing.bytes

    def wait_for_seal(self) -> None:
        """Return once the last checkpoint is in its place, or could not be put there; asks no other process."""
        sealing: _Sealing | None = self.__dict__.get("_sealing")
        if sealing is not None:
            sealing.wait()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint of this step, and let it be sealed while training goes on.

        Where that fails, it is told, and those that there are stay.
        """
        self.settle()
        folder, step, started = Path(self.args.output_dir), int(self.state.global_step), time.perf_counter()
        writing, first = Writing(folder, step), bool(self.args.should_save)
        former_best = self._point_to_best(folder, step)
        problem = self._attempt(lambda: writing.begin(self._needed_bytes()) if first else None)
        problem = problem or self._attempt(lambda: self._write(writing.partial))
        if problem is not None:
            self._fail(writing, problem, former_best)
            return
        sealing = _Sealing(writing, former_best)
        if first:
            sealing.begin(self._seal(writing))
        sealing.waited_seconds = time.perf_counter() - started
        self.__dict__["_sealing"] = sealing

    def _load_best_model(self) -> None:
        """Load the best checkpoint, once it is there."""
        self.settle()
        upstream: Any = super()
        upstream._load_best_model()

    def _finalize_training(self, *arguments: Any, **options: Any) -> Any:
        """Return what upstream does, which looks at the checkpoints that there are."""
        self.settle()
        upstream: Any = super()
        return upstream._finalize_training(*arguments, **options)

    def _fail(self, writing: Writing, problem: str, former_best: tuple[Any, Any, Any]) -> None:
        account, state, step = self.checkpoints, self.state, writing.step
        account.failed[step] = problem
        if state.best_global_step == step:
            state.best_metric, state.best_global_step, state.best_model_checkpoint = former_best
        if self.args.should_save:
            _attempt_alone(writing.abandon)
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

    def _seal(self, writing: Writing) -> Callable[[], int]:
        """Return what seals a checkpoint, puts it in its place and returns its bytes; the state as it is now counts."""
        arguments, planned = self.args, int(self.state.max_steps)
        batch = Batch(
            arguments.world_size, arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        )  # fmt: skip
        resumable, keep = not arguments.save_only_model, arguments.save_total_limit
        best = Path(self.state.best_model_checkpoint or "").name

        def seal() -> int:
            manifest = writing.finish(planned, resumable, batch)
            if wrong := _attempt_alone(lambda: rotate(writing.folder, writing.step, keep, {best})):
                print(f"warning: an old checkpoint could not be removed: {wrong}", file=sys.stderr, flush=True)
            return manifest.bytes

        return seal

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
        return self._agree(_attempt_alone(action))

    def _agree(self, problem: str | None) -> str | None:
        if self.args.world_size == 1:
            return problem
        return next((told for told in gather_object([problem]) if told), None)


@dataclass
class _Sealing:
    """A checkpoint whose files are written: they are synced, digested and put in their place while training goes on.

    Digesting a large checkpoint takes as long as writing it, and neither a GPU nor the trainer has any part in it.
    """

    writing: Writing
    former_best: tuple[Any, Any, Any]
    """What the state is to say of the best checkpoint where this one, being the best, is lost."""
    waited_seconds: float = 0.0
    """That training waited for it."""
    bytes: int = 0
    _thread: threading.Thread | None = None
    _problem: str | None = None
    _error: BaseException | None = None

    def begin(self, seal: Callable[[], int]) -> None:
        """Run `seal` in a thread, whose end the process waits for before its own."""
        self._thread = threading.Thread(target=self.run, args=[seal], name=f"seal-{self.writing.step}")
        self._thread.start()

    def run(self, seal: Callable[[], int]) -> None:
        """Run `seal`, and keep what became of it."""
        try:
            self._problem = _attempt_alone(lambda: setattr(self, "bytes", seal()))
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Return once it is done."""
        if self._thread is not None:
            self._thread.join()

    def result(self) -> str | None:
        """Return why there is no checkpoint, None where there is one, having waited for that."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._problem


def _attempt_alone(action: Callable[[], None]) -> str | None:
    """Return what went wrong with the disk, in words; None where nothing did."""
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

"""The first loss or gradient that is not finite stops a run before the optimizer takes it in."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from transformers import TrainerCallback

from hf_peft_recipes.errors import NonFiniteError
from hf_peft_recipes.finite.batch import documents, find_rows
from hf_peft_recipes.finite.culprit import Culprit, Fed, agreed, broken_weight, find_culprit

KEPT_IN_CHECKPOINTS = "skipped_steps"
"""Key in `trainer_state.json`, beside the states of callbacks, under which the steps stand that are left out."""
SMALLEST_SCALE = 1.0
"""Of the loss in float16. Gradients that overflow even so are the model's own, and halving goes on for ever:
DeepSpeed's `min_loss_scale`, at which it gives up too."""
_ROWS_TOLD = 8


class FiniteGuard(TrainerCallback):
    """Looks at the losses of a step's micro-batches and at the norm of its gradient, once an optimizer step.

    A step that is found wanting raises a NonFiniteError while the weights are those of the step before. Steps that are
    to be left out, as a run that was rolled back has some, are taken without a gradient: weights and the optimizer's
    moments stay, the learning rate's schedule goes on.
    """

    def __init__(self) -> None:
        self.skipped: set[int] = set()
        """Optimizer steps that are left out, counted from 1."""
        self.overflows = 0
        """Steps that float16's gradient scaler has left out by itself."""
        self.within: str | None = None
        """What training is in the midst of: `step` (forward or backward), `optimizer`, or neither."""
        self._trainer: Any = None
        self._table: Any = None
        self._loss: Any = None
        self._fed: list[Fed] = []
        self._losses: list[torch.Tensor] = []
        self._norm: Any = None
        self._skips = False

    def watch(self, trainer: Any, table: Any = None) -> None:
        """Look at what the trainer's steps come to, from now on.

        Args:
            trainer: none of whose methods is watched by another yet: what is replayed is not to be counted.
            table: its token rows, before they are packed.
        """
        self._trainer, self._table, self._loss = trainer, table, trainer.compute_loss
        step, norm, save = trainer.training_step, trainer._get_grad_norm, trainer._save_checkpoint

        def stepped(model: Any, *arguments: Any, **options: Any) -> Any:
            if self._skips:
                return self._pass_over()
            self.within = "step"
            value = step(model, *arguments, **options)
            self.within = None
            if self._scaler is not None:
                # A step that the scaler leaves out is to leave no NaN in the curve.
                value = torch.where(torch.isfinite(value), value, torch.zeros_like(value))
            self._losses.append(value)
            return value

        def fed(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            if model.training:
                # Some trainers take out of it what they have used.
                self._fed.append((dict(inputs), options))
            return self._loss(model, inputs, *arguments, **options)

        def measured(*arguments: Any, **options: Any) -> Any:
            self._norm = norm(*arguments, **options)
            return self._norm

        def saved(*arguments: Any, **options: Any) -> Any:
            self._require_weights(trainer.state.global_step)
            return save(*arguments, **options)

        trainer.training_step, trainer.compute_loss = stepped, fed
        trainer._get_grad_norm, trainer._save_checkpoint = measured, saved

    def leaves_out(self, step: int) -> bool:
        """Return whether an optimizer step, counted from 1, is left out."""
        return step in self.skipped

    def result(self) -> dict[str, Any]:
        """Return the account for `result.json`."""
        return {"skipped_steps": sorted(self.skipped), "overflows": self.overflows}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the steps that the checkpoint says are left out, and keep all that are known in those to come."""
        kept = (state.stateful_callbacks or {}).get(KEPT_IN_CHECKPOINTS)
        self.leave_out(kept["attributes"]["steps"] if kept else (), state)

    def leave_out(self, steps: Iterable[int], state: Any = None) -> None:
        """Leave out these steps too.

        Args:
            steps: counted from 1.
            state: upstream's, of the trainer, which goes into its checkpoints; None where training has not begun.
        """
        self.skipped |= set(steps)
        if state is not None and self.skipped:
            kept = {"args": {}, "attributes": {"steps": sorted(self.skipped)}}
            state.stateful_callbacks = {**(state.stateful_callbacks or {}), KEPT_IN_CHECKPOINTS: kept}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin with a step."""
        self._fed, self._losses, self._norm = [], [], None
        self._skips = self.leaves_out(state.global_step + 1)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Stop where the step is not finite.

        Raises:
            NonFiniteError: it is not, and no gradient scaler will see to it.
        """
        if self._skips:
            for tensor in model.parameters():
                tensor.grad = None
            if self._trainer.accelerator.scaler is not None:
                raise NonFiniteError(f"step {state.global_step + 1} cannot be left out in float16")
            # The mean of the next loss that is logged is one over the steps that were taken.
            self._trainer._globalstep_last_logged += 1
        elif not self._is_finite(model) and not self._scaler_sees_to_it():
            raise self._error(state.global_step + 1)
        self._fed = []
        self.within = "optimizer"

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimizer is done."""
        self.within = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Stop where the loss of held-out rows is not finite.

        Raises:
            NonFiniteError: it is not. No step is to blame alone, so none could be left out.
        """
        value = (logs or {}).get("eval_loss")
        if value is not None and not math.isfinite(float(value)):
            raise NonFiniteError(f"step {state.global_step}: the loss of held-out rows is {value}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop where the weights that training ends with are not finite.

        Raises:
            NonFiniteError: some are not.
        """
        if self._trainer is not None:
            self._require_weights(state.global_step)

    @property
    def _scaler(self) -> Any:
        return self._trainer.accelerator.scaler if self._trainer is not None else None

    def _pass_over(self) -> torch.Tensor:
        trainer = self._trainer
        if hasattr(trainer, "_step"):
            # Trainers whose model answers count micro-batches, and answer anew where nothing is left.
            trainer._step += 1
            trainer._buffered_inputs = None
        return torch.zeros((), device=trainer.args.device)

    def _is_finite(self, model: Any) -> bool:
        """Return whether all losses and the norm of the gradient are, in every process: the one wait for the GPU."""
        norm = self._norm
        if norm is None:
            norm = torch.nn.utils.get_total_norm([one.grad for one in model.parameters() if one.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
        values = [value.detach().float().reshape(()) for value in self._losses]
        device = values[0].device if values else norm.device
        verdict = torch.stack([*values, norm.float().reshape(()).to(device)]).isfinite().all()
        if self._trainer is not None and self._trainer.args.world_size > 1:
            verdict = self._trainer.accelerator.reduce(verdict.float(), "sum") == self._trainer.args.world_size
        return bool(verdict)

    def _scaler_sees_to_it(self) -> bool:
        """Return whether float16's gradient scaler leaves the step out, and can still halve its scale."""
        if self._scaler is None or self._scaler.get_scale() <= SMALLEST_SCALE:
            return False
        self.overflows += 1
        return True

    def _error(self, step: int) -> NonFiniteError:
        what = "loss" if any(not math.isfinite(value) for value in map(float, self._losses)) else None
        if self._trainer is None:
            return NonFiniteError(f"step {step}: the {what or 'gradient'} is not finite", {"step": step})
        said = f"step {step}: the {agreed(self._trainer, what) or 'gradient'} is not finite"
        facts: dict[str, Any] = {"step": step, "tensor": None, "micro_batch": None, "process": 0, "rows": None}
        if self._scaler is not None:
            # The scaler has left out all steps that could be, so this one is not to blame alone.
            scale = f", at the loss scale {self._scaler.get_scale():g} too"
            return NonFiniteError(f"{said}{scale}", {key: value for key, value in facts.items() if key != "step"})
        culprit, failure = self._culprit()
        facts |= {"micro_batches": len(self._fed), **self._where(culprit)}
        return NonFiniteError(said + _told(facts, failure, self._trainer.args.world_size), facts)

    def _culprit(self) -> tuple[Culprit | None, str]:
        try:
            return find_culprit(self._trainer, self._loss, self._fed), ""
        except Exception as error:
            if self._trainer.args.world_size > 1:
                # The other processes are in the middle of it.
                raise
            # What is wrong is known; where it came from would only have helped.
            return None, " ".join(str(error).split())[:200] or type(error).__name__

    def _where(self, culprit: Culprit | None) -> dict[str, Any]:
        """Return where it was, with the numbers of the training rows: of a micro-batch, or of all that the step had."""
        if culprit is not None and culprit.micro_batch is None:
            # A weight is broken whatever the rows are.
            return {"tensor": culprit.tensor, "process": culprit.process}
        batches = [inputs for inputs, _ in self._fed]
        if culprit is None:
            return {"rows": self._rows(batches)}
        own = culprit.process == self._trainer.args.process_index
        rows = agreed(self._trainer, self._rows([batches[culprit.micro_batch or 0]]) if own else None)
        return {
            "tensor": culprit.tensor, "process": culprit.process, "micro_batch": culprit.micro_batch, "rows": rows,
        }  # fmt: skip

    def _rows(self, batches: Iterable[Any]) -> list[int] | None:
        return find_rows([one for batch in batches for one in documents(batch)], self._table)

    def _require_weights(self, step: int) -> None:
        """Raise a NonFiniteError where weights that train are not finite, in any process.

        Args:
            step: that has brought them to that.
        """
        trainer = self._trainer
        broken = broken_weight(trainer.accelerator.unwrap_model(trainer.model), trainable_only=True)
        if broken := agreed(trainer, broken):
            raise NonFiniteError(
                f"step {step}: {broken} is not finite after it", {"step": step, "tensor": broken} if step else None
            )


def _told(facts: dict[str, Any], failure: str, world: int) -> str:
    """Return where it came from, as the end of a sentence."""
    if facts["tensor"] is None:
        why = f" ({failure})" if failure else ""
        return f"; where that began did not show when the step was gone through once more{why}"
    told = f"; the first to go was {facts['tensor']}"
    if facts["micro_batch"] is not None:
        told += f", in micro-batch {facts['micro_batch'] + 1} of {facts['micro_batches']}"
        told += f" of process {facts['process']}" if world > 1 else ""
    rows = facts["rows"]
    if rows:
        more = f" and {len(rows) - _ROWS_TOLD} more" if len(rows) > _ROWS_TOLD else ""
        told += f"; training rows {', '.join(map(str, rows[:_ROWS_TOLD]))}{more}"
    return told

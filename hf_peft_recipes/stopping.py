"""What ends training before its last step: held-out rows that get no better, a spent budget, or a request to end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_peft_recipes import preemption
from hf_peft_recipes.budget import STEPS, Budget
from hf_peft_recipes.errors import PreemptedError, RecipeError, UserError, did_you_mean

_PREFIX = "eval_"


class BestCheckpoint(TrainerCallback):
    """Sees to it that training ends with its best checkpoint, where it is to; `result()` says which one that is."""

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self._result: dict[str, Any] = {}

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Refuse a metric that evaluation does not give; upstream's own error has a traceback.

        Raises:
            UserError: there is none of that name.
        """
        name, given = _metric(args), metrics or {}
        if name not in given:
            known = [key.removeprefix(_PREFIX) for key in given]
            wanted = name.removeprefix(_PREFIX)
            raise UserError(
                f"training.metric_for_best_model: evaluation gives no {wanted!r}{did_you_mean(wanted, known)} "
                f"(it gives {', '.join(known)})"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the account.

        Raises:
            RecipeError: the checkpoint that was loaded is not that of the best evaluation.
        """
        if state.best_global_step is None:
            # Training was over before the first evaluation: what it ends with is all there is.
            return
        kept = Path(state.best_model_checkpoint or "").name
        if kept != f"checkpoint-{state.best_global_step}":
            raise RecipeError(f"the best evaluation is that of step {state.best_global_step}, the checkpoint {kept!r}")
        self._result = {
            "steps": state.global_step,
            "planned_steps": state.max_steps,
            "stopped_early": state.global_step < state.max_steps,
            "patience": self._patience,
            "metric": _metric(args),
            "best_step": state.best_global_step,
            "best_value": float(state.best_metric),
        }

    def result(self) -> dict[str, Any]:
        """Return the account for `result.json`; empty where nothing was evaluated."""
        return self._result


class BudgetEnd(TrainerCallback):
    """Ends training when its budget is spent, the schedule of the learning rate having run to its end by then.

    The schedule is that of the recipe over the share of the budget that is spent, in place of the share of the steps,
    so that no recipe of a race is stopped at a rate at which another one has settled (Li et al. 2020, «Budgeted
    Training», arXiv:1905.04753). A warm-up that is given as a number of steps is as good as none.

    Args:
        budget: of the run.
        tokens_seen: how many tokens training was fed so far.
    """

    def __init__(self, budget: Budget, tokens_seen: Callable[[], int]) -> None:
        self._budget, self._tokens_seen = budget, tokens_seen
        self._started = self._seconds = self._share = 0.0
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        """Start the clock, and draw the schedule over the budget."""
        self._started = time.perf_counter()
        scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
        # Schedules that are no function of the step, as the one that waits for a plateau, are left as they are.
        for at, factor in enumerate(getattr(scheduler, "lr_lambdas", [])):
            scheduler.lr_lambdas[at] = self._over_budget(factor)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End training where nothing is left."""
        if torch.cuda.is_available():
            # The step is asked for by now, and not done.
            torch.cuda.synchronize()
        self._seconds, self._tokens = time.perf_counter() - self._started, self._tokens_seen()
        self._share = self._budget.share(self._seconds, self._tokens)
        if self._share >= 1:
            control.should_training_stop = control.should_log = True

    def result(self) -> dict[str, Any]:
        """Return the account for `result.json`."""
        return {
            "seconds": self._budget.seconds,
            "tokens": self._budget.tokens,
            "spent_seconds": self._seconds,
            "spent_tokens": self._tokens,
        }

    def _over_budget(self, factor: Callable[[float], float]) -> Callable[[int], float]:
        return lambda _: factor(min(self._share, 1.0) * STEPS)


class PreemptionEnd(TrainerCallback):
    """Ends training after the step at which the process is asked to end, with a checkpoint.

    Processes that train together end after the same step: before it they agree, on the CPU, since a GPU would have to
    come to the end of all that it is asked for.
    """

    def __init__(self, wait_for_seal: Callable[[], None] = lambda: None) -> None:
        """Args:
        wait_for_seal: returns once the last checkpoint is in its place.
        """
        self._wait_for_seal = wait_for_seal
        self._group: Any = None
        self._ending = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the group in which processes agree."""
        if args.world_size > 1:
            self._group = distributed.new_group(backend="gloo")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let the step be the last one; what is due at its end comes first."""
        if not self._agreed():
            return
        self._ending = control.should_training_stop = True
        # A resumed run begins to count losses anew.
        control.should_log = True
        # The evaluation that is due at the end of an epoch is not made up for by a run that goes on after it.
        control.should_save = not (float(state.epoch).is_integer() and str(args.eval_strategy.value) == "epoch")
        _keep_whatever_comes(args)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save, where an evaluation came first."""
        if self._ending:
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save after an evaluation during which the request came."""
        if state.global_step and not self._ending and self._agreed():
            self._ending = control.should_training_stop = control.should_save = True
            _keep_whatever_comes(args)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End, now that there is a checkpoint.

        Raises:
            PreemptedError: with the step, and what there is to go on from.
        """
        if self._ending or self._agreed():
            raise self._error(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End where nothing was saved.

        Raises:
            PreemptedError: with the step, and what there is to go on from.
        """
        if self._ending:
            raise self._error(args, state)

    def _agreed(self) -> bool:
        """Return whether any of the processes was asked to end."""
        wanted = bool(preemption.requested())
        if self._group is None:
            return wanted
        flag = torch.tensor([int(wanted)])
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group)
        return bool(flag.item())

    def _error(self, args: Any, state: Any) -> PreemptedError:
        self._wait_for_seal()
        reasons = [preemption.requested()]
        if self._group is not None:
            reasons = [""] * args.world_size
            # Nobody leaves before the first process has written: launchers end all when one has ended.
            distributed.all_gather_object(reasons, preemption.requested(), group=self._group)
        reason = next(filter(None, reasons))
        found = [path.name for path in Path(args.output_dir).glob("checkpoint-*")]
        steps = [int(number) for name in found if (number := name.removeprefix("checkpoint-")).isdecimal()]
        if state.global_step in steps:
            kept = f"checkpoint-{state.global_step} is written"
        else:
            last = f"the last one is checkpoint-{max(steps)}" if steps else "there is none before it"
            kept = f"its checkpoint could not be written, and {last}"
        return preemption.answer(
            f"preempted at step {state.global_step} of {state.max_steps} ({reason}); {kept}", reason
        )


def _keep_whatever_comes(arguments: Any) -> None:
    """Let the last checkpoint be written whether it is the best or not, and hold all that training goes on from."""
    arguments.save_only_model = False
    if str(arguments.save_strategy.value) == "best":
        arguments.save_strategy = type(arguments.save_strategy)("steps")


def budget_arguments() -> dict[str, Any]:
    """Return what is set for a run that its budget ends: it spends nothing on what is not training."""
    return {
        "max_steps": STEPS, "logging_steps": 10, "eval_strategy": "no", "save_strategy": "no",
        "load_best_model_at_end": False,
    }  # fmt: skip


def stopping_callbacks(arguments: Any, patience: int | None, threshold: float | None) -> list[Any]:
    """Return the callbacks that stop training and keep its best checkpoint; none where nothing asks for them.

    Args:
        arguments: upstream's, of the trainer.
        patience: evaluations without a better one that end training; None never ends it.
        threshold: by how much an evaluation must be better to count.
    """
    if not arguments.load_best_model_at_end:
        return []
    early = [] if patience is None else [EarlyStoppingCallback(patience, threshold or 0.0)]
    return [BestCheckpoint(patience), *early]


def _metric(arguments: Any) -> str:
    """Return the metric that evaluations are compared by, as they name it."""
    name = str(arguments.metric_for_best_model)
    return name if name.startswith(_PREFIX) else f"{_PREFIX}{name}"

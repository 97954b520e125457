"""The best checkpoint of a run: held to what evaluation said, and to what training ends with."""

from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from hf_peft_recipes.errors import RecipeError, UserError, did_you_mean

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

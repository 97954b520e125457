"""A run handed over to lm-evaluation-harness, beside its base."""

import inspect
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts

INSTALL = "pip install lm-eval"
_OURS = ("model", "model_args", "tasks", "task_manager", "evaluation_tracker", "log_samples", "batch_size", "device")
"""Arguments of `simple_evaluate` that are set here; the batch size is the model's there."""


def require_harness() -> None:
    """Raise a UserError with the command that installs lm-evaluation-harness, where it is missing. Loads nothing."""
    if find_spec("lm_eval") is None:
        raise UserError(f"--tasks needs lm-evaluation-harness, which is not installed: {INSTALL}")


def evaluate_tasks(
    folder: Path,
    recipe: ResolvedRecipe,
    record: Mapping[str, Any],
    tasks: Sequence[str],
    options: Mapping[str, Any],
    with_base: bool = True,
) -> dict[str, Any]:
    """Return `{tasks, versions, before, after}`; on either side task names to the harness's metrics and their errors.

    The model is handed over as it was trained and is served, loaded once; the base is the same with the adapter off.

    Args:
        folder: of a run.
        recipe: of its `recipe.yaml`.
        record: its `result.json`.
        tasks: names that the harness knows, or of YAML files below `include_path`.
        options: of the harness by its own names: `num_fewshot`, `limit`, `apply_chat_template`, `batch_size` …; and
            `include_path`, a folder with tasks of one's own.
        with_base: whether to evaluate the base too.

    Raises:
        UserError: the harness is not installed, or does not know an option or a task.
    """
    from hf_peft_recipes import trained

    if objective_facts(recipe.objective).head != "causal_lm":
        raise UserError(f"--tasks asks language models, and {recipe.objective} trains another kind")
    require_harness()
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    keywords = {key: value for key, value in options.items() if key not in ("include_path", "batch_size")}
    known = [name for name in inspect.signature(simple_evaluate).parameters if name not in _OURS]
    for key in keywords:
        if key not in known:
            near = did_you_mean(key, [*known, "include_path", "batch_size"])
            raise UserError(f"--{key} is no option of lm-evaluation-harness that can be given here{near}")
    include = options.get("include_path")
    if include is not None and not Path(str(include)).is_dir():
        raise UserError(f"--include_path {str(include)!r}: no such folder")
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in tasks:
        if not manager.match_tasks([name]):
            raise UserError(f"lm-evaluation-harness knows no task {name!r}{did_you_mean(name, manager.all_tasks)}")
    try:
        # Their data are read now, before any weights.
        manager.load(list(tasks))
    except (OSError, ValueError) as error:
        raise UserError(f"--tasks {','.join(tasks)}: {str(error).strip().splitlines()[0]}") from error
    loaded = trained.load(folder, recipe, record)

    def evaluated(model: Any) -> dict[str, Any]:
        # The harness has an autocast of its own, which would switch ours off.
        precision = "bfloat16" if recipe.value("training.bf16") else None
        handed = HFLM(
            pretrained=model, tokenizer=loaded.renderer.tokenizer, batch_size=options.get("batch_size", 8),
            mixed_precision_dtype=precision,
        )  # fmt: skip
        return dict(simple_evaluate(handed, tasks=list(tasks), task_manager=manager, log_samples=False, **keywords))

    before = trained.on_base(loaded, evaluated) if with_base else None
    after = evaluated(loaded.model)
    return {
        "tasks": list(tasks),
        "options": dict(options),
        "versions": {"lm_eval": _version(), "tasks": after["versions"]},
        "samples": {name: counts["effective"] for name, counts in after.get("n-samples", {}).items()},
        "before": _figures(before) if before else {},
        "after": _figures(after),
    }


def _figures(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return task to metric to `{value, standard_error}`; metrics of a filter are `exact_match,strict`."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for task, figures in results["results"].items():
        for key, value in figures.items():
            metric, _, by = key.partition(",")
            if metric.endswith("_stderr") or not by or not isinstance(value, (int, float)):
                continue
            error = figures.get(f"{metric}_stderr,{by}")
            known = isinstance(error, (int, float)) and math.isfinite(error)
            name = metric if by == "none" else key
            found.setdefault(task, {})[name] = {
                "value": float(value),
                "standard_error": float(error) if known else None,
            }
    return found


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")

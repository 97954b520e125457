"""Sweeps as a Python user holds them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.models import check_base
from hf_peft_recipes.report.sweep import trial_line, trials_table

if TYPE_CHECKING:
    from hf_peft_recipes.api.recipes import Recipe
    from hf_peft_recipes.fresh_process import Finished
    from hf_peft_recipes.sweep.plan import Decide
    from hf_peft_recipes.sweep.trials import Job


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left behind."""

    folder: Path
    summary: dict[str, Any]
    """As it stands in `trials.json`."""

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The trials in order: `number`, `status`, `value`, `params`, `evaluations`, `seconds`, `error`, `folder`."""
        return list(self.summary["trials"])

    @property
    def best(self) -> dict[str, Any] | None:
        """The trial with the best value; None where none has one."""
        return next((trial for trial in self.trials if trial["number"] == self.summary["best"]), None)

    def recipe(self) -> "Recipe":
        """Return the recipe with the best values, ready to train.

        Raises:
            UserError: no trial came through.
        """
        from hf_peft_recipes.api.shelf import resolve_recipe
        from hf_peft_recipes.sweep.trials import BEST_FILE

        if self.best is None:
            raise UserError(f"no trial of the sweep in {str(self.folder)!r} came through")
        return resolve_recipe(str(self.folder / BEST_FILE), [])

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        Console(file=text, width=120).print(trials_table(self.summary))
        return text.getvalue()


def sweep_folder(recipe: "Recipe", output_dir: str | Path | None) -> Path:
    """Return the folder of a sweep: the given one, or a new one below `runs/`."""
    name = f"{recipe.name.replace('/', '-')}-sweep-{datetime.now():%Y%m%d-%H%M%S}"
    return Path("runs") / name if output_dir is None else Path(output_dir).expanduser()


def run_sweep(
    recipe: "Recipe",
    decide: "Decide",
    space: str | Sequence[str] | Mapping[str, Any],
    trials: int,
    output_dir: str | Path | None,
    metric: str,
    progress: bool,
) -> SweepResult:
    """Return what came of a sweep; see `Recipe.sweep`.

    Args:
        recipe: that is searched.
        decide: gives it with further settings, decided for a run.
        space: as `parse_space` takes it.
        trials: how many.
        output_dir: of the sweep.
        metric: that is compared.
        progress: say on standard error what came of each trial.
    """
    from hf_peft_recipes.preflight import RunRequest, examine_data
    from hf_peft_recipes.scorers.rewards import read_rewards
    from hf_peft_recipes.sweep.plan import HELD_OUT_LOSS, make_sweep, open_folder
    from hf_peft_recipes.sweep.space import parse_space

    if trials < 1:
        raise UserError(f"--trials {trials}: at least 1 is wanted")
    if "model" in recipe.objects:
        raise UserError("each trial begins with the base anew, and model is an object here; give its name or folder")
    if recipe.resolved.is_in_rounds:
        raise UserError(
            f"{recipe.name} learns in rounds, and a sweep compares single trainings; search {_plain(recipe)}"
        )
    plan, folder = make_sweep(decide, parse_space(space), metric), sweep_folder(recipe, output_dir)
    base = decide({}, "")
    check_base(base.section("model"))
    # Trials find the recipe in a file of this machine; who it comes from is known here.
    read_rewards(base, recipe.objects.get("rewards"))
    examples = examine_data(base, RunRequest(**recipe.objects))
    if metric == HELD_OUT_LOSS and not examples.validation:
        raise UserError("--metric eval_loss: there are no held-out rows (data.validation_size, evaluation.max_rows)")
    open_folder(folder, plan)
    # Optuna comes along with these, which takes a second; what is wrong above has been told by then.
    from hf_peft_recipes.sweep.trials import run_fresh, run_trials

    def told(trial: dict[str, Any], summary: dict[str, Any]) -> None:
        if progress:
            print(trial_line(trial, summary), file=sys.stderr, flush=True)

    # Objects do not go to another process.
    execute = (lambda job: _train_here(recipe, job)) if recipe.objects else run_fresh
    return SweepResult(folder, run_trials(folder, plan, trials, decide, execute, told))


def _plain(recipe: "Recipe") -> str:
    """Return the name of the recipe by which each round learns."""
    method = recipe.name.split("+")[0]
    return f"{method}+{recipe.resolved.objective}"


def _train_here(recipe: "Recipe", job: "Job") -> "tuple[Finished, Mapping[str, Any] | None]":
    """Run a trial in this process; return how it ended, as that of another process would be."""
    from hf_peft_recipes.fresh_process import Finished
    from hf_peft_recipes.measure.memory import release_free_memory
    from hf_peft_recipes.sweep.reporting import Reporter
    from hf_peft_recipes.sweep.trials import read_record

    callbacks = [*recipe.objects.get("callbacks", []), Reporter(job.study, job.number)]
    objects = {**recipe.objects, "callbacks": callbacks}
    code, said = 0, ""
    try:
        type(recipe)(job.recipe, objects, lambda *_: job.recipe, recipe.device).train(
            job.folder, rehearse=False, progress=False
        )
    except Exception as error:
        code, said = getattr(error, "exit_code", 1), f"{type(error).__name__}: {error}"
    release_free_memory()
    return Finished(["train"], code, "", said), read_record(job.folder)

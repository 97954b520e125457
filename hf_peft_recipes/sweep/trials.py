"""The trials of a sweep, one after the other, each a run in its own folder; what came of them, after each of them."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import PreemptedError, RecipeError, UserError
from hf_peft_recipes.fresh_process import Finished, outcome, run_verb
from hf_peft_recipes.lock import sole_writer
from hf_peft_recipes.report.sweep_plot import plot_trials
from hf_peft_recipes.results import RECIPE_FILE, RESULT_FILE, write_text
from hf_peft_recipes.spec import ResolvedRecipe, recipe_file
from hf_peft_recipes.spec.serialize import decision_words, with_absolute_paths
from hf_peft_recipes.sweep.plan import HELD_OUT_LOSS, SCHEMA_VERSION, Decide, Sweep
from hf_peft_recipes.sweep.study import CUT_OFF, STUDY_FILE, Study

TRIALS_FILE, BEST_FILE, PLOT_FILE = "trials.json", "best.yaml", "trials.png"
ALIKE = 3
"""So many first trials that fail in the same words say that all would."""

Record = Mapping[str, Any]
Execute = Callable[["Job"], tuple[Finished, Record | None]]
"""Runs a trial; returns its finished process and the record that it left, if any."""


@dataclass(frozen=True)
class Job:
    """The run of one trial."""

    number: int
    settings: Mapping[str, Any]
    recipe: ResolvedRecipe
    folder: Path
    """Of the run; its parent is the sweep's."""
    study: Path
    """The study's file."""


def run_trials(
    folder: Path,
    sweep: Sweep,
    number: int,
    decide: Decide,
    execute: Execute,
    told: Callable[[dict[str, Any], dict[str, Any]], None] = lambda trial, summary: None,
) -> dict[str, Any]:
    """Run trials until so many have ended; return the sweep's summary, which stands in `trials.json` too.

    Args:
        folder: of the sweep, as `open_folder` makes it.
        sweep: what is searched.
        number: of trials, those of earlier calls counted in.
        decide: gives the recipe with further settings.
        execute: runs a trial.
        told: is called with each trial that ended, and the summary.

    Raises:
        UserError: another sweep runs in the folder, or a mistake that every trial would make.
    """
    with sole_writer(folder, "sweep"):
        study = Study(folder, sweep)
        study.take_back()
        summary = summarize(folder, sweep, study, decide)
        try:
            while sum(trial["status"] != CUT_OFF for trial in summary["trials"]) < number:
                trial = study.ask()
                try:
                    _run_trial(folder, sweep, study, trial, decide, execute)
                except KeyboardInterrupt:
                    study.interrupt(trial, "interrupted from the keyboard")
                    raise
                except PreemptedError as error:
                    study.interrupt(trial, str(error))
                    raise
                summary = summarize(folder, sweep, study, decide)
                told(summary["trials"][-1], summary)
                _refuse_what_repeats(summary["trials"])
        finally:
            summary = summarize(folder, sweep, study, decide, final=True)
        return summary


def run_fresh(job: Job) -> tuple[Finished, Record | None]:
    """Run a trial as a process of its own: what it leaves in memory, or runs out of, is no other's."""
    with tempfile.TemporaryDirectory(prefix="trial-") as scratch:
        file = Path(scratch) / RECIPE_FILE
        write_text(file, recipe_file(job.recipe))
        words = ["--exact", "--no-rehearse", "--output_dir", str(job.folder), "--trial", f"{job.study}:{job.number}"]
        words += decision_words(job.recipe)
        finished = run_verb("train", str(file), *words)
    return finished, read_record(job.folder)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run, None where it left none."""
    try:
        record: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial's run."""
    return folder / f"trial-{number:03d}"


def trial_settings(sweep: Sweep, recipe: ResolvedRecipe) -> dict[str, Any]:
    """Return what is set for trials, and not for the run that takes the best values: what would only take time.

    Args:
        sweep: what is searched.
        recipe: of the trial.
    """
    settings: dict[str, Any] = {"certify": "off"}
    if not recipe.value("training.load_best_model_at_end"):
        settings["training.save_strategy"] = "no"
    if sweep.metric == HELD_OUT_LOSS:
        # The loss is known; nothing needs to be answered.
        return settings | {"evaluation.task": "text"}
    # Values that are chosen by the test rows would be praised by them.
    return settings | {"evaluation.split": "validation"}


def summarize(folder: Path, sweep: Sweep, study: Study, decide: Decide, final: bool = False) -> dict[str, Any]:
    """Return what came of the trials so far; write it as `trials.json`, and the best values as `best.yaml`.

    Args:
        folder: of the sweep.
        sweep: what is searched.
        study: of its trials.
        decide: gives the recipe with further settings.
        final: whether no trial follows: then with what each field mattered, and the picture.
    """
    trials = [{**trial, "folder": str(trial_folder(folder, trial["number"]))} for trial in study.finished()]
    done = [trial for trial in trials if trial["status"] == "done"]
    best = (min if sweep.minimizes else max)(done, key=lambda trial: trial["value"], default=None)
    space = [str(dimension) for dimension in sweep.dimensions]
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "recipe": sweep.name,
        "metric": sweep.metric,
        "direction": "minimize" if sweep.minimizes else "maximize",
        "space": space,
        "logarithmic": [dimension.key for dimension in sweep.dimensions if dimension.is_log],
        "best": best["number"] if best else None,
        "importances": study.importances() if final else {},
        "trials": trials,
    }
    write_text(folder / TRIALS_FILE, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if best:
        head = (
            f"# hf-peft-recipes train {BEST_FILE}\n"
            f"# trial {best['number']}, the best of {len(trials)}: {sweep.metric} {best['value']:.6g}; searched were "
            f"{', '.join(space)}\n"
        )
        recipe = with_absolute_paths(decide(sweep.settings(best["params"]), "sweep"))
        write_text(folder / BEST_FILE, head + recipe_file(recipe))
    if final and done:
        plot_trials(summary, folder / PLOT_FILE)
    return summary


def _run_trial(folder: Path, sweep: Sweep, study: Study, trial: Any, decide: Decide, execute: Execute) -> None:
    settings = sweep.settings(trial.params)
    try:
        plain = decide(settings, "--space")
        recipe = decide({**settings, **trial_settings(sweep, plain)}, "sweep")
        job = Job(trial.number, settings, recipe, trial_folder(folder, trial.number), folder / STUDY_FILE)
        finished, record = execute(job)
    except RecipeError as error:
        # Values that do not go together.
        study.fail(trial, str(error), error.exit_code)
        return
    ended = outcome(finished, record)
    if study.was_pruned(trial):
        study.prune(trial)
    elif ended["status"] != "done" or record is None:
        study.fail(trial, ended["error"], ended["exit_code"], ended["status"] == "oom")
    elif (value := _value(sweep, record)) is None:
        given = sorted({*record["metrics"]["after"], *(key for point in record["loss_curve"] for key in point)})
        study.fail(trial, f"--metric {sweep.metric}: this run gives {', '.join(given)}", UserError.exit_code)
    else:
        study.finish(trial, value)


def _value(sweep: Sweep, record: Record) -> float | None:
    """Return the metric of a run, None where it has none of that name."""
    if sweep.metric != HELD_OUT_LOSS:
        found: float | None = record["metrics"]["after"].get(sweep.metric)
        return found
    stopping = record.get("stopping") or {}
    if stopping.get("metric") == HELD_OUT_LOSS:
        return float(stopping["best_value"])
    losses = [point[HELD_OUT_LOSS] for point in record["loss_curve"] if HELD_OUT_LOSS in point]
    return float(losses[-1]) if losses else None


def _refuse_what_repeats(trials: list[dict[str, Any]]) -> None:
    """Raise a UserError where nothing has come through yet and the last trial says that nothing will."""
    counted = [trial for trial in trials if trial["status"] != CUT_OFF]
    if not counted or any(trial["status"] != "failed" for trial in counted):
        return
    last = counted[-1]
    told = ", ".join(f"{key} {value}" for key, value in last["params"].items())
    if last["exit_code"] == UserError.exit_code:
        raise UserError(f"trial {last['number']} ({told}): {last['error']}")
    if len(counted) >= ALIKE and len({trial["error"] for trial in counted}) == 1 and not last["starved"]:
        raise UserError(f"the first {len(counted)} trials failed alike: {last['error']}")

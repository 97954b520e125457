"""A race: recipes on equal time or equal tokens, over seeds, each run a fresh process; who is best at what it takes."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_peft_recipes.api import resolve_recipe
from hf_peft_recipes.bench.cell import SCHEMA_VERSION, Execute, circumstances, overrides_of, train_verb
from hf_peft_recipes.bench.suite import (
    Line,
    find_line,
    is_result,
    read_lines,
    require_quiet,
    with_line,
    write_lines,
)
from hf_peft_recipes.budget import Budget
from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.fresh_process import outcome
from hf_peft_recipes.lock import sole_writer
from hf_peft_recipes.measure.facts import code_digest, commit_of
from hf_peft_recipes.metric_facts import DEFINITIONS, LOWER_IS_BETTER, TASK_METRICS
from hf_peft_recipes.report.race_plot import plot_race

LINES_FILE, PLOT_FILE = "race.jsonl", "race.png"
_RUNNING = ".running-"
_MEASURED = ("peak_memory_bytes", "train_seconds", "total_seconds", "steps", "tokens_per_second")


@dataclass(frozen=True)
class Entrant:
    """One run of a race."""

    recipe: str
    seed: int
    seconds: float | None = None
    tokens: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the run."""

    @property
    def name(self) -> str:
        """`qlora-43`."""
        return f"{self.recipe}-{self.seed}"

    def options(self) -> dict[str, Any]:
        """Return the options of the run."""
        budget = {"budget_seconds": self.seconds, "budget_tokens": self.tokens}
        given = {key: value for key, value in budget.items() if value is not None}
        return {"certify": "off", **self.overrides, "seed": self.seed, **given}


def make_entrants(
    recipes: Sequence[str], budget: Budget, seeds: int, overrides: Mapping[str, Any] | None = None
) -> list[Entrant]:
    """Return the runs of a race, seed by seed, so that one that is cut off has all recipes alike.

    Args:
        recipes: by name.
        budget: of each run.
        seeds: how many, from the recipe's own on.
        overrides: further options of the runs.

    Raises:
        UserError: an unknown recipe or option, a recipe that stands twice, a number of steps beside the budget.
    """
    given, seed = dict(overrides or {}), None
    if not recipes:
        raise UserError("no recipe to race: names with commas between are wanted")
    if twice := [name for at, name in enumerate(recipes) if name in recipes[:at]]:
        raise UserError(f"{twice[0]!r} stands twice among the recipes")
    for key in ("max_steps", "num_train_epochs"):
        if key in given:
            raise UserError(f"--{key} beside a budget: the budget says when a run ends")
    for name in recipes:
        resolved = resolve_recipe(name, overrides_of(given)).resolved
        seed = int(resolved.value("training.seed") or 0) if seed is None else seed
    return [
        Entrant(name, (seed or 0) + at, budget.seconds, budget.tokens, given) for at in range(seeds) for name in recipes
    ]


def run_race(
    entrants: Iterable[Entrant],
    folder: Path,
    metric: str | None = None,
    told: Callable[[Line, bool], None] = lambda line, fresh: None,
    execute: Execute = train_verb,
    busy: bool = False,
) -> dict[str, Any]:
    """Run what the folder has no result of; return the standings, which `race.png` shows too.

    Args:
        entrants: to run, in this order.
        folder: gets `race.jsonl`, a line a run, and `race.png`.
        metric: that recipes are compared by; None for the task's own, else the loss.
        told: is called with each line, and whether it was run now.
        execute: runs an entrant, in a fresh process.
        busy: run though other processes use the GPU.

    Raises:
        UserError: an unknown metric, a folder with another file of that name, a busy GPU.
    """
    entrants = list(entrants)
    if metric is not None and metric not in DEFINITIONS:
        raise UserError(f"--metric {metric}: no such metric{did_you_mean(metric, DEFINITIONS)}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output folder {str(folder)!r} is a file")
    path = folder / LINES_FILE
    lines, found = read_lines(path), list[Line]()
    if not busy:
        require_quiet("; wait until it is free, or race all the same with --busy")
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder, "race"):
        for left in folder.glob(f"{_RUNNING}*"):
            shutil.rmtree(left)
        try:
            for entrant in entrants:
                line = find_line(lines, entrant)
                fresh = line is None or not is_result(line)
                if line is None or fresh:
                    line = _run(entrant, folder, execute)
                    lines = with_line(lines, line)
                    write_lines(path, lines)
                found.append(line)
                told(line, fresh)
        finally:
            standings = stand(found, metric)
            if any(row["runs"] for row in standings["recipes"]):
                plot_race(standings, folder / PLOT_FILE)
    return standings


def stand(lines: Sequence[Line], metric: str | None = None) -> dict[str, Any]:
    """Return where each recipe stands: quality, memory and time over its seeds, and whether another beats it in all.

    After equal time only quality and memory are compared; the seconds are those of the budget.

    Args:
        lines: of the runs.
        metric: that recipes are compared by; None for the task's own, else the loss.
    """
    done = [line for line in lines if line["status"] == "done"]
    shared = set.intersection(*(set(line["metrics"]["after"]) for line in done)) if done else set()
    metric = metric or next((name for name in TASK_METRICS if name in shared), "loss")
    timed = any(line["cell"]["seconds"] is not None for line in lines)
    rows = [
        _row([line for line in lines if line["cell"]["recipe"] == name], metric)
        for name in dict.fromkeys(line["cell"]["recipe"] for line in lines)
    ]
    lower = metric in LOWER_IS_BETTER
    ranked = [row for row in rows if row["quality"]]
    for row in ranked:
        row["pareto"] = not any(_beats(_costs(other, lower, timed), _costs(row, lower, timed)) for other in ranked)
    return {
        "metric": metric,
        "lower_is_better": lower,
        "budget": {key: lines[0]["cell"][key] for key in ("seconds", "tokens")} if lines else {},
        "recipes": rows,
    }


def _run(entrant: Entrant, folder: Path, execute: Execute) -> Line:
    # Beside the results: whole models may have no room in the system's own folder.
    with tempfile.TemporaryDirectory(dir=folder, prefix=_RUNNING) as scratch:
        finished, record = execute(entrant.recipe, entrant.options(), Path(scratch))
    line: Line = {
        "schema_version": SCHEMA_VERSION,
        "name": entrant.name,
        "cell": {**asdict(entrant), "overrides": dict(entrant.overrides)},
        **outcome(finished, record),
    }
    if record and line["status"] == "done":
        line |= {
            "measured": {key: record["measured"][key] for key in _MEASURED},
            "budget": record["budget"],
            "parameters": record["parameters"],
            "metrics": {key: value for key, value in record["metrics"].items() if key != "examples"},
        }
    return line | circumstances() | {"commit": commit_of(Path(__file__).parent), "code": code_digest()}


def _row(lines: Sequence[Line], metric: str) -> dict[str, Any]:
    done = [line for line in lines if line["status"] == "done"]
    scores = [line["metrics"]["after"][metric] for line in done if metric in line["metrics"]["after"]]
    names = dict.fromkeys(name for line in done for name in line["metrics"]["after"])
    return {
        "recipe": lines[0]["cell"]["recipe"],
        "runs": len(scores),
        "quality": _spread(scores),
        "metrics": {
            name: _spread([line["metrics"]["after"][name] for line in done if name in line["metrics"]["after"]])
            for name in names
        },
        "peak_memory_bytes": _spread([line["measured"]["peak_memory_bytes"] for line in done]),
        "train_seconds": _spread([line["budget"]["spent_seconds"] for line in done]),
        "tokens": _spread([line["budget"]["spent_tokens"] for line in done]),
        "trainable": done[0]["parameters"]["trainable"] if done else None,
        "pareto": False,
        "errors": [f"{line['status']}: {line['error']}" for line in lines if line["status"] != "done"]
        or ([f"has no {metric}"] if done and not scores else []),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean, lowest, highest and the sample's standard deviation, None without values."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values), "deviation": deviation}


def _costs(row: Mapping[str, Any], lower_is_better: bool, timed: bool) -> tuple[float, ...]:
    """Return what a recipe is compared by, each better when lower."""
    quality = row["quality"]["mean"] * (1 if lower_is_better else -1)
    costs = (quality, row["peak_memory_bytes"]["mean"])
    return costs if timed else (*costs, row["train_seconds"]["mean"])


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether the one is nowhere worse and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))

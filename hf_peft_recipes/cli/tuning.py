"""`sweep` and `race`: a recipe trained many times with other values; several recipes on equal terms."""

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from hf_peft_recipes.api import SweepResult, resolve_recipe, sweep_folder
from hf_peft_recipes.budget import parse_budget
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.recipes import AsJson, Exact, Name
from hf_peft_recipes.errors import PreemptedError, UserError
from hf_peft_recipes.preemption import watching


def sweep_command(
    context: typer.Context,
    name: Name,
    space: Annotated[
        list[str] | None,
        typer.Option("--space", help="KEY=loguniform(a,b), uniform(a,b), int(a,b) or a|b|c, with commas between."),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many, those that are there counted in.")] = 20,
    metric: Annotated[
        str, typer.Option("--metric", help="What is compared: eval_loss, or one that a run ends with.")
    ] = "eval_loss",
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="The sweep's folder. [default: runs/NAME-sweep-DATE-TIME]")
    ] = None,
    exact: Exact = False,
    as_json: AsJson = False,
) -> None:
    """Search values of a recipe by training it many times; keep the best ones as a recipe. Takes the flags of `train`.

    Optuna proposes each trial by those before it, and gives up what falls behind their median. Trials are compared on
    held-out rows, never on test rows. The same command goes on with a sweep that was cut off.

    The folder gets trials.json, trials.png, best.yaml, and each trial's run.
    """
    context.with_resource(watching())
    if not space:
        raise UserError("--space is missing: KEY=loguniform(a,b), uniform(a,b), int(a,b) or a|b|c")
    recipe = resolve_recipe(name, parse_flags(context.args), exact=exact)
    folder = sweep_folder(recipe, output_dir)
    try:
        result = recipe.sweep(space, trials=trials, output_dir=folder, metric=metric)
    except (KeyboardInterrupt, PreemptedError):
        print(f"what is done stands in {folder}; the same command with --output_dir {folder} goes on", file=sys.stderr)
        raise
    _print_sweep(result, as_json)


def _print_sweep(result: SweepResult, as_json: bool) -> None:
    if as_json:
        print_json({**result.summary, "folder": str(result.folder)})
        return
    from hf_peft_recipes.report.sweep import trials_table

    print_rich(trials_table(result.summary))
    quoted = shlex.quote(str(result.folder))
    print(f"picture: {quoted}/trials.png")
    if result.best:
        print(f"go on with:\n  hf-peft-recipes train {quoted}/best.yaml")


def race_command(
    context: typer.Context,
    recipes: Annotated[str, typer.Argument(metavar="NAMES", help="Recipes, with commas between.")],
    budget: Annotated[str | None, typer.Option("--budget", help="Equal time of training: 90s, 10m, 1.5h.")] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", help="Equal tokens: 500k, 2M.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each recipe, each with a seed of its own.")] = 3,
    metric: Annotated[
        str | None, typer.Option("--metric", help="What is compared. [default: the task's own metric, else the loss]")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="The race's folder. [default: runs/race-DATE-TIME]")
    ] = None,
    busy: Annotated[bool, typer.Option("--busy", help="Race though others use the GPU.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train recipes on equal time or equal tokens; show quality against memory and time. Takes the flags of `train`.

    Each run is a process of its own, its learning rate's schedule drawn over the budget. A recipe that fails is a row
    with its reason. The same command goes on with a race that was cut off.

    The folder gets race.jsonl, a line a run, and race.png.
    """
    context.with_resource(watching())
    from hf_peft_recipes.bench.race import make_entrants, run_race
    from hf_peft_recipes.report.race import race_line, race_table

    names = [name.strip() for name in recipes.split(",") if name.strip()]
    overrides = {flag.name: flag.value for flag in parse_flags(context.args)}
    entrants = make_entrants(names, parse_budget(budget, tokens), seeds, overrides)
    folder = output_dir or Path("runs") / f"race-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        standings = run_race(
            entrants, folder, metric, busy=busy,
            told=lambda line, fresh: print(race_line(line, fresh), file=sys.stderr, flush=True),
        )  # fmt: skip
    except (KeyboardInterrupt, PreemptedError):
        print(f"what is done stands in {folder}; the same command with --output_dir {folder} goes on", file=sys.stderr)
        raise
    if as_json:
        print_json({**standings, "folder": str(folder)})
        return
    print_rich(race_table(standings))
    print(f"picture: {shlex.quote(str(folder))}/race.png")

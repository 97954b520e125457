"""`sweep`: a recipe's values searched by training it many times."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_peft_recipes.api import SweepResult, resolve_recipe, sweep_folder
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.recipes import AsJson, Exact, Name
from hf_peft_recipes.errors import UserError


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
    if not space:
        raise UserError("--space is missing: KEY=loguniform(a,b), uniform(a,b), int(a,b) or a|b|c")
    recipe = resolve_recipe(name, parse_flags(context.args), exact=exact)
    folder = sweep_folder(recipe, output_dir)
    try:
        result = recipe.sweep(space, trials=trials, output_dir=folder, metric=metric)
    except KeyboardInterrupt:
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

"""`verify`: whether a recipe does on this machine what its receipt says."""

from typing import Annotated

import typer

from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.recipes import AsJson, complete_name


def verify_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe that ships.", autocompletion=complete_name)],
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Run so many steps. [default: all of the receipt]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the first steps of a recipe's embedded demo, and compare them with the receipt that ships with the recipe.

    Counts must be equal; losses, gradient norms and memory near; speed is told, and never failed on.
    """
    from hf_peft_recipes.bench.receipts import describe, require, verify
    from hf_peft_recipes.report.receipt import verdict_table

    verdict = verify(name, steps)
    if as_json:
        print_json(verdict.shown())
    else:
        print_rich(verdict_table(verdict.shown(), describe(verdict.receipt)))
    require(verdict)

"""`verify`: whether a recipe does on this machine what its receipt says; `verify-resume`: whether it can be killed."""

from typing import Annotated

import typer

from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.recipes import AsJson, Name, complete_name


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


def verify_resume_command(
    context: typer.Context,
    name: Name,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps of the run.")] = 8,
    at: Annotated[
        int | None, typer.Option("--at", help="End it after this step. [default: one beyond the half]")
    ] = None,
    signal: Annotated[str, typer.Option("--signal", help="KILL, or TERM as a scheduler sends it.")] = "KILL",
    num_processes: Annotated[int, typer.Option("--num_processes", min=1, help="Go on with so many processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Kill a short run of a recipe, resume it, and compare it with the same run undisturbed, step by step.

    On one process it must be the same to the last bit: what each step was fed, losses, gradient norms, rates, held-out
    losses, final weights. On several, the same samples, and losses that are near. Takes the flags of `train`.
    """
    from hf_peft_recipes.bench.resumption import require, verify_resume
    from hf_peft_recipes.report.receipt import resumption_table

    flags = parse_flags(context.args)
    found = verify_resume(name, flags, context.args, steps, at, signal, num_processes)
    if as_json:
        print_json(found.shown())
    else:
        print_rich(resumption_table(found.shown()))
    require(found)

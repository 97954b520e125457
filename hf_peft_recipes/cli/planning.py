"""`plan`: what a run will need, before anything of it is loaded."""

from typing import Annotated

import typer

from hf_peft_recipes.api import resolve_recipe
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.recipes import AsJson, Name
from hf_peft_recipes.errors import UserError


def plan_command(
    context: typer.Context,
    name: Name,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="H100, RTX4090 …, 24GiB, or cpu. [default: this machine's device]")
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="How many of them.")] = 1,
    sharding: Annotated[
        str | None, typer.Option("--sharding", help="none, ddp, fsdp, zero1, zero2, zero3. [default: ddp]")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Run the step on torch's meta device too, which checks the plan.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Time a step on this machine: few layers of the model, without its weights."),
    ] = False,
    data: Annotated[
        bool, typer.Option("--data", help="Read and tokenise the data too: tokens, steps, hours of the whole run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what a run needs in memory and time, from the model's config alone. Loads no weights.

    Takes the flags of `train`: --model, --max_length, --per_device_train_batch_size …
    """
    if gpus < 1:
        raise UserError(f"--gpus {gpus}: at least 1 is needed")
    recipe = resolve_recipe(name, parse_flags(context.args), gpu)
    plan = recipe.plan(devices=gpus, sharding=sharding, trace=trace, measure=measure, data=data)
    if as_json:
        print_json(plan.shown())
        return
    from hf_peft_recipes.report.plan import plan_view

    print_rich(plan_view(plan.shown()))

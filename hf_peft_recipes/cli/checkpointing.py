"""`checkpoints`: what a run can go on from."""

from pathlib import Path
from typing import Annotated

import typer

from hf_peft_recipes.api import list_checkpoints
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.recipes import AsJson


def checkpoints_command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A run's folder.")],
    as_json: AsJson = False,
) -> None:
    """List a run's checkpoints, newest first, each read whole and held against its manifest.

    `train … --resume` goes on from the newest good one.
    """
    verdicts = list_checkpoints(folder)
    if as_json:
        print_json(verdicts)
        return
    if not verdicts:
        print(f"{str(folder)!r} holds no checkpoint")
        return
    from hf_peft_recipes.report.checkpoints import checkpoints_table

    print_rich(checkpoints_table(verdicts))

"""`feedback collect`: people judge what a model answered."""

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[
    Path,
    typer.Argument(
        metavar="TARGET", help="The folder of a run whose round waits, or a JSONL file of prompt and completion."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Where the records of a file go; by default beside it."),
]
ShowReference = Annotated[bool, typer.Option("--show_reference", help="Show the right answer, where there is one.")]


def collect_command(
    target: Target,
    name: Annotated[str | None, typer.Option("--name", help="Who judges; by default the login name.")] = None,
    output: Output = None,
    show_reference: ShowReference = False,
) -> None:
    """Judge completions in the terminal: accept, reject, edit, criticise.

    Every judgement is on disk before the next one; q leaves, and the same command goes on. With u the last one comes
    again. A correction is written in $EDITOR. Keys can also come from a pipe, one a line.
    """
    from hf_peft_recipes.feedback.people.judging import check_name, login_name
    from hf_peft_recipes.feedback.people.queue import Queue
    from hf_peft_recipes.feedback.people.target import open_target
    from hf_peft_recipes.feedback.people.terminal import collect

    person = login_name() if name is None else check_name(name)
    collect(Queue(open_target(target, output)), person, show_reference)

"""`feedback collect` and `feedback serve`: people judge what a model answered."""

import contextlib
import sys
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


def serve_command(
    target: Target,
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 7321,
    host: Annotated[str, typer.Option("--host", help="The address to listen on; by default this machine's own.")] = (
        "127.0.0.1"
    ),
    name: Annotated[str | None, typer.Option("--name", help="The name that is offered to whoever begins.")] = None,
    output: Output = None,
    show_reference: ShowReference = False,
) -> None:
    """Judge completions on a web page: for several people at once, by keys, without internet.

    The address that is printed holds a token and stays the same when the server is started again, so open pages go on.
    From another machine: ssh -L 7321:localhost:7321 HOST.
    """
    from hf_peft_recipes.feedback.people.judging import check_name
    from hf_peft_recipes.feedback.people.queue import Queue
    from hf_peft_recipes.feedback.people.server import open_server
    from hf_peft_recipes.feedback.people.target import open_target

    queue, person = Queue(open_target(target, output)), "" if name is None else check_name(name)
    server = open_server(queue, host, port, person, show_reference)
    if not server.is_loopback():
        print(f"warning: {host} is reached from elsewhere, without encryption; ssh -L is safer", file=sys.stderr)
    print(f"{server.address()}\nCtrl-C ends; records in {queue.target.journal}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    progress = queue.progress("")
    print(f"{progress.judged} of {progress.total} judged")

"""`evaluate` and `chat`: a finished run, put to use."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_peft_recipes.api import RunResult, resolve_recipe
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.recipes import AsJson
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.results import RECIPE_FILE

Folder = Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a run.")]


def evaluate_command(
    context: typer.Context,
    folder: Folder,
    base: Annotated[bool, typer.Option(help="Score the base model too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Score a finished run on its held-out rows, beside its base. Takes flags: --evaluation.max_rows, --dataset …"""
    result = RunResult.read(folder)
    recipe = resolve_recipe(str(folder / RECIPE_FILE), parse_flags(context.args), exact=True)
    from hf_peft_recipes.upstream_noise import quiet

    with quiet():
        from hf_peft_recipes import trained

        loaded = trained.load(folder, recipe.resolved, result.record)
        metrics = trained.evaluate(loaded, result.record, with_base=base)
    if as_json:
        print_json({"folder": str(folder), "recipe": result.record["recipe"], "metrics": metrics})
    else:
        from hf_peft_recipes.report.classes import class_tables
        from hf_peft_recipes.report.table import metrics_table

        sides = ("base", "adapter" if loaded.has_adapter else "trained")
        print_rich(metrics_table(metrics, f"{result.record['recipe']}: {folder}", sides))
        for table in class_tables(metrics, sides):
            print_rich(table)


def chat_command(
    folder: Folder,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this once and leave.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message before the conversation.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="The longest answer.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Talk to what a run trained: its answers stream; an empty line or Ctrl-D ends the talk."""
    result = RunResult.read(folder)
    if as_json and prompt is None:
        raise UserError("--json needs --prompt")
    trained_model = result.load()
    from hf_peft_recipes import trained

    def write(text: str) -> None:
        if not as_json:
            print(text, end="", flush=True)

    messages = [{"role": "system", "content": system}] if system else []
    if prompt is not None:
        answer = trained.answer(trained_model, [*messages, {"role": "user", "content": prompt}], max_new_tokens, write)
        if as_json:
            print_json({"prompt": prompt, "answer": answer})
        else:
            print()
        return
    remembers = trained_model.renderer.has_template
    while line := _ask():
        turn = {"role": "user", "content": line}
        answer = trained.answer(trained_model, [*messages, turn], max_new_tokens, write)
        print()
        if remembers:
            messages += [turn, {"role": "assistant", "content": answer}]


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""

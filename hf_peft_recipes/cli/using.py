"""`evaluate` and `chat`: a finished run, put to use."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_peft_recipes.api import RunResult
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.recipes import AsJson
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec import Override
from hf_peft_recipes.spec.strict_yaml import load_scalar

Folder = Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a run.")]


def evaluate_command(
    context: typer.Context,
    folder: Folder,
    base: Annotated[bool, typer.Option(help="Score the base model too.")] = True,
    gate: Annotated[
        Path | None,
        typer.Option("--gate", metavar="POLICY.yaml", help="Say whether the run may ship; exit code 8 if not."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="TASK,…", help="Let lm-evaluation-harness evaluate these; takes its options."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a finished run on its held-out rows, beside its base.

    Takes flags of the run's recipe: --evaluation.max_rows, --evaluation.task, --dataset …; with --tasks those of
    lm-evaluation-harness instead: --num_fewshot, --limit, --apply_chat_template, --batch_size, --include_path …
    """
    result, flags = RunResult.read(folder), parse_flags(context.args)
    if gate is not None and (tasks is not None or not base):
        raise UserError("--gate holds a run to its base on its own rows: it goes with neither --tasks nor --no-base")
    if gate is not None:
        _decide(result, gate, flags, as_json)
    elif tasks is not None:
        _evaluate_tasks(result, tasks, base, flags, as_json)
    else:
        _evaluate(result, base, flags, as_json)


def _evaluate(result: RunResult, base: bool, flags: list[Override], as_json: bool) -> None:
    metrics = result.evaluate(with_base=base, overrides=flags)
    if as_json:
        print_json({"folder": str(result.folder), "recipe": result.record["recipe"], "metrics": metrics})
        return
    from hf_peft_recipes.report.classes import class_tables
    from hf_peft_recipes.report.table import metrics_table

    sides = "base", "trained"
    print_rich(metrics_table(metrics, f"{result.record['recipe']}: {result.folder}", sides))
    for table in class_tables(metrics, sides):
        print_rich(table)


def _decide(result: RunResult, policy: Path, flags: list[Override], as_json: bool) -> None:
    verdict = result.gate(policy, overrides=flags)
    from hf_peft_recipes.gate.verdicts import require

    if as_json:
        print_json({"folder": str(result.folder), "recipe": result.record["recipe"], "policy": str(policy), **verdict})
    else:
        from hf_peft_recipes.report.gate import gate_table

        print_rich(gate_table(verdict, f"{result.folder}: {verdict['verdict']}"))
    require(verdict)


def _evaluate_tasks(result: RunResult, tasks: str, base: bool, flags: list[Override], as_json: bool) -> None:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks names no task")
    options = {flag.name: load_scalar(flag.value) if isinstance(flag.value, str) else flag.value for flag in flags}
    found = result.evaluate_tasks(names, with_base=base, **options)
    if as_json:
        print_json({"folder": str(result.folder), "recipe": result.record["recipe"], **found})
        return
    from hf_peft_recipes.report.harness import harness_table

    print_rich(harness_table(found, f"{result.record['recipe']}: {result.folder}"))


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
            print(_as_shown(text), end="", flush=True)

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


def _as_shown(text: str) -> str:
    """Return a model's words as a terminal may have them: what it would obey stands there by its code."""
    from hf_peft_recipes.feedback.people.terminal import visible

    return visible(text) if sys.stdout.isatty() else text


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""

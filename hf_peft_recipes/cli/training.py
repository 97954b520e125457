"""`train`: one run, in this process or in several."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_peft_recipes import engines, launching
from hf_peft_recipes.api import Recipe, resolve_recipe
from hf_peft_recipes.budget import make_budget
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.cli.printing import print_json, print_rich
from hf_peft_recipes.cli.publishing import HUB, BaseModel, CreatePr, PushBase, Tag, print_outcome
from hf_peft_recipes.cli.recipes import AsJson, Exact, Name
from hf_peft_recipes.embedded import EMBEDDED
from hf_peft_recipes.errors import PreemptedError, UserError
from hf_peft_recipes.preemption import doing, parse_duration, process_age, watching
from hf_peft_recipes.supervision import register, told_command

RUN, LAUNCH = "The run", "Several processes"


def train_command(
    context: typer.Context,
    name: Name,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output_dir", help="The run's folder. [default: runs/NAME-DATE-TIME]", rich_help_panel=RUN),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that the folder holds.", rich_help_panel=RUN)
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.", rich_help_panel=RUN)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry_run", help="Load everything, run one step, write nothing.", rich_help_panel=RUN),
    ] = False,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Where it does not fit, take the cheapest changes that do.", rich_help_panel=RUN),
    ] = False,
    rehearse: Annotated[
        bool | None,
        typer.Option(
            "--rehearse/--no-rehearse",
            help="Two steps on the longest rows first, in a process of their own. [default: on a GPU that gets full]",
            rich_help_panel=RUN,
        ),
    ] = None,
    on_nonfinite: Annotated[
        str,
        typer.Option(
            "--on_nonfinite",
            help="At a loss or gradient that is not finite: stop; or rollback, and leave that step out.",
            rich_help_panel=RUN,
        ),
    ] = "stop",
    max_rollbacks: Annotated[
        int, typer.Option("--max_rollbacks", help="How often, before it stops.", rich_help_panel=RUN)
    ] = 3,
    on_oom: Annotated[
        str,
        typer.Option(
            "--on_oom",
            help="Where a step runs out of memory: halve the rows at a time, as many a step; or stop.",
            rich_help_panel=RUN,
        ),
    ] = "halve",
    longest: Annotated[bool, typer.Option("--longest", hidden=True)] = False,
    trial: Annotated[str | None, typer.Option("--trial", hidden=True)] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            "--max_time",
            help="End with a checkpoint after 90s, 45m, 2h50m, 1d2h since the command began.",
            rich_help_panel=RUN,
        ),
    ] = None,
    budget_seconds: Annotated[float | None, typer.Option("--budget_seconds", hidden=True)] = None,
    budget_tokens: Annotated[int | None, typer.Option("--budget_tokens", hidden=True)] = None,
    trajectory: Annotated[Path | None, typer.Option("--trajectory", hidden=True)] = None,
    exact: Exact = False,
    as_json: AsJson = False,
    num_processes: Annotated[
        int | None,
        typer.Option(
            "--num_processes",
            help="Start so many processes, on all machines together. [default: the configuration's]",
            rich_help_panel=LAUNCH,
        ),
    ] = None,
    accelerate_config: Annotated[
        str | None,
        typer.Option(
            "--accelerate_config",
            help="An accelerate configuration: single, ddp, fsdp2, zero2, zero3, or a file's path.",
            rich_help_panel=LAUNCH,
        ),
    ] = None,
    num_machines: Annotated[
        int | None,
        typer.Option("--num_machines", help="So many machines start this command.", rich_help_panel=LAUNCH),
    ] = None,
    machine_rank: Annotated[
        int | None,
        typer.Option("--machine_rank", help="The number of this one, from 0.", rich_help_panel=LAUNCH),
    ] = None,
    main_process_ip: Annotated[
        str | None, typer.Option("--main_process_ip", help="Address of machine 0.", rich_help_panel=LAUNCH)
    ] = None,
    main_process_port: Annotated[
        int | None, typer.Option("--main_process_port", help="A free port of machine 0.", rich_help_panel=LAUNCH)
    ] = None,
    push_to_hub: Annotated[
        bool, typer.Option("--push_to_hub", help="Publish the run when it is done.", rich_help_panel=HUB)
    ] = False,
    hub_model_id: Annotated[
        str | None, typer.Option("--hub_model_id", help="Where it goes: user/name.", rich_help_panel=HUB)
    ] = None,
    push_every: Annotated[
        str | None,
        typer.Option(
            "--push_every", help="`save` publishes each checkpoint, to a branch of its own.", rich_help_panel=HUB
        ),
    ] = None,
    hub_private_repo: Annotated[
        bool, typer.Option("--hub_private_repo", help="Make the repository private.", rich_help_panel=HUB)
    ] = False,
    hub_revision: Annotated[
        str | None, typer.Option("--hub_revision", help="The branch. [default: main]", rich_help_panel=HUB)
    ] = None,
    create_pr: CreatePr = False,
    tag: Tag = None,
    base_model: BaseModel = None,
    push_base: PushBase = False,
) -> None:
    """Train a recipe, evaluate it before and after, and save what was trained.

    Without --model and --dataset the embedded demo runs: a tiny language model learns the sentiment of short reviews.

    Every field of the classes that a recipe uses is a flag, by its upstream name:

    * what to train: --model, --dataset (a file, a folder or a Hub id), --data.columns.prompt, --data.columns.completion

    * training (TRL's config, e.g. SFTConfig): --learning_rate, --num_train_epochs, --max_steps, --max_length,
    --per_device_train_batch_size, --gradient_accumulation_steps, --eval_steps, --report_to …

    * adapter (PEFT's config, e.g. LoraConfig): --r, --lora_alpha, --lora_dropout, --target_modules, --use_dora …

    * quantization (BitsAndBytesConfig; --quant_method torchao: TorchAoConfig): --bnb_4bit_quant_type, --quant_type …

    * loading (from_pretrained): --dtype, --attn_implementation, --revision, --trust_remote_code …

    * evaluation: --evaluation.task, --evaluation.split, --evaluation.max_rows …

    * feedback, of recipes in rounds (ilf, rft …): --feedback.source, --feedback.rounds, --feedback.samples …

    `hf-peft-recipes show NAME` prints what a recipe sets, and why.
    """
    context.with_resource(watching())
    doing("while loading")
    register()
    max_seconds = None if max_time is None else parse_duration(max_time)
    recipe = resolve_recipe(name, parse_flags(context.args), exact=exact, objects=_callbacks(trial))
    told = {
        "private": hub_private_repo, "revision": hub_revision, "create_pr": create_pr, "tag": tag,
        "base_model": base_model, "push_base": push_base,
    }  # fmt: skip
    publication = _publication(push_to_hub, hub_model_id, push_every, told)
    if fit:
        fitted = recipe.fitted()
        if fitted is not recipe and launching.rank_from_environment() == 0:
            print(f"--fit: {fitted.fitted_by}", file=sys.stderr)
        recipe = fitted
    in_rounds = recipe.resolved.is_in_rounds
    if in_rounds and "RANK" in os.environ:
        raise UserError("rounds begin in one process; start it by itself, with --num_processes for its trainings")
    if in_rounds and rehearse:
        raise UserError(
            "--rehearse: rounds are many trainings; rehearse one of them, by the objective that it learns by"
        )
    if not in_rounds:
        _rehearse(recipe, rehearse)
    machines: dict[str, str | int | None] = {
        "num_machines": num_machines, "machine_rank": machine_rank, "main_process_ip": main_process_ip,
        "main_process_port": main_process_port,
    }  # fmt: skip
    if in_rounds and any(value is not None for value in machines.values()):
        raise UserError("rounds are trained on one machine; --num_machines is for recipes without feedback")
    if not in_rounds and any(value is not None for value in (num_processes, accelerate_config, *machines.values())):
        raise typer.Exit(_launched(recipe, num_processes, accelerate_config, machines))
    context.with_resource(watching(max_seconds, process_age()))
    main = launching.rank_from_environment() == 0
    if main and recipe.resolved.value("model.name_or_path") in EMBEDDED and recipe.resolved.value("data.dataset"):
        print("no --model: the embedded tiny model is trained", file=sys.stderr)
    command = told_command(shlex.join(["hf-peft-recipes", *sys.argv[1:]]))
    try:
        result = recipe.train(
            output_dir, overwrite=overwrite, resume=resume, dry_run=dry_run, longest=longest,
            on_nonfinite=on_nonfinite, max_rollbacks=max_rollbacks, on_oom=on_oom,
            budget=make_budget(budget_seconds, budget_tokens), launch=_launch(num_processes, accelerate_config),
            rehearse=False, progress=main, command=command, publication=publication, trajectory=trajectory,
        )  # fmt: skip
    except PreemptedError as error:
        if main and error.folder:
            print(f"go on with:\n  {_going_on(command, error.folder)}", file=sys.stderr)
        raise
    if not main:
        return
    if as_json:
        print_json(result.record)
        return
    if dry_run:
        losses = [point["loss"] for point in result.record["loss_curve"]]
        print(f"dry run: one step of {result.record['recipe']} with loss {losses[0]:.4f}; nothing was written")
        return
    _print_result(result.record, str(result.folder))


def _going_on(command: str, folder: Path) -> str:
    """Return the command by which a run that was ended goes on; a foreign launcher's words are for the user to add."""
    words = [word for word in shlex.split(command) if word not in ("--overwrite", "--resume")]
    words += [] if any(word.startswith("--output_dir") for word in words) else ["--output_dir", str(folder)]
    return shlex.join([*words, "--resume"])


def _launch(num_processes: int | None, accelerate_config: str | None) -> tuple[str, ...]:
    """Return the flags by which the trainings of a run in rounds are started."""
    given = {"--num_processes": num_processes, "--accelerate_config": accelerate_config}
    return tuple(word for name, value in given.items() if value is not None for word in (name, str(value)))


def _launched(
    recipe: Recipe, num_processes: int | None, accelerate_config: str | None, machines: dict[str, str | int | None]
) -> int:
    """Return the exit code of the run in several processes, what they could not do having been refused."""
    options = launching.machine_options(machines)
    asked = engines.read_config(launching.config_path(accelerate_config)) if accelerate_config else engines.Asked()
    engines.check_recipe(recipe.resolved, asked)
    flags = ("--accelerate_config", "--num_processes", *(f"--{name}" for name in launching.MACHINE_FLAGS))
    words = [*_without(sys.argv[1:], flags), "--no-rehearse"]
    on_cpu = bool(recipe.resolved.value("training.use_cpu"))
    number, count = int(machines["num_machines"] or 1), num_processes
    if count is None:
        # On several machines one process each is the least; a configuration says how many there are.
        count = max(asked.num_processes, number)
    command = ["hf-peft-recipes", *sys.argv[1:]]
    return launching.launch(words, count, accelerate_config, on_cpu, command, options, number)


def _callbacks(trial: str | None) -> dict[str, Any]:
    """Return what a trial of a sweep brings along: what reports to its study."""
    if trial is None:
        return {}
    from hf_peft_recipes.sweep.reporting import reporter

    return {"callbacks": [reporter(trial)]}


def _rehearse(recipe: Recipe, wanted: bool | None) -> None:
    """Rehearse the run where that is wanted, and print what it took beside what was planned."""
    if "RANK" in os.environ:
        if wanted:
            raise UserError("--rehearse under a launcher: start the processes with --num_processes instead")
        return
    if wanted:
        print("rehearsal: two steps on the longest rows", file=sys.stderr)
    if found := recipe.rehearse(wanted):
        from hf_peft_recipes.report.plan import rehearsal_lines

        print("\n".join(rehearsal_lines(found.shown())), file=sys.stderr)


def _publication(push_to_hub: bool, repo_id: str | None, push_every: str | None, told: dict[str, Any]) -> Any:
    """Return what the flags ask for, None when nothing goes to the Hub."""
    if push_every not in (None, "save"):
        raise UserError(f"--push_every {push_every}: only `save` is known")
    if not push_to_hub:
        named = [f"--{name}" for name, value in told.items() if value]
        named += ["--hub_model_id"] if repo_id else []
        if named or push_every:
            raise UserError(f"{(named or ['--push_every'])[0]} does nothing without --push_to_hub")
        return None
    if repo_id is None:
        raise UserError("--push_to_hub needs --hub_model_id user/name")
    from hf_peft_recipes.hub.request import PushRequest

    return PushRequest(repo_id, every_save=push_every == "save", **told)


def _print_result(record: dict[str, Any], folder: str) -> None:
    from hf_peft_recipes.report.table import run_table

    print_rich(run_table(record))
    if feedback := record.get("feedback"):
        from hf_peft_recipes.report.rounds import rounds_table

        print_rich(rounds_table(feedback))
    unproved = record["proof"]["unproved"]
    if unproved:
        print(f"unproved, the run was too short or they had nothing to learn from: {', '.join(list(unproved)[:5])}")
    if "push" in record:
        print_outcome(record["push"])
    quoted = shlex.quote(folder)
    print("go on with:")
    print(f"  hf-peft-recipes chat {quoted}")
    print(f"  hf-peft-recipes evaluate {quoted}")
    print(f"  hf-peft-recipes push {quoted} user/name")
    print(f"  hf-peft-recipes train {quoted}/recipe.yaml --learning_rate …")


def _without(words: list[str], names: tuple[str, ...]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in names:
            skip = True
        elif not word.startswith(tuple(f"{name}=" for name in names)):
            kept.append(word)
    return kept

"""The whole path of one run, on one page: model and data, trainer, before, training, after, the run's folder."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_peft_recipes import launching, measure, models, results
from hf_peft_recipes.data import Check, Example, PreparedData, Renderer
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.evaluation import Metrics, find_task, score_rows, summarize
from hf_peft_recipes.launching import World
from hf_peft_recipes.models import ParameterCount
from hf_peft_recipes.objectives import Objective, find_objective
from hf_peft_recipes.preflight import Examined, RunRequest, clear_run, last_checkpoint
from hf_peft_recipes.proof import TrainingProof
from hf_peft_recipes.report.plot import plot_losses
from hf_peft_recipes.report.progress import Progress
from hf_peft_recipes.rows import tokenize
from hf_peft_recipes.spec import Entry, ResolvedRecipe, recipe_file
from hf_peft_recipes.speed import speed_up


@dataclass
class Prepared:
    """Everything that a run needs, built and ready."""

    trainer: Any
    model: Any
    renderer: Renderer
    checks: list[Check]
    data: PreparedData
    speed: list[str]
    """The faster paths that the model takes."""
    parameters: ParameterCount
    world: World


def prepare(recipe: ResolvedRecipe, request: RunRequest, examined: Examined) -> Prepared:
    """Return the trainer with the model, the data and all that is measured along the way.

    Raises:
        UserError: the model, the data or the arguments do not go together.
        LaunchError: other processes came up than were asked for.
    """
    objective = find_objective(recipe.objective)
    arguments = objective.training_arguments(_arguments(recipe, request, examined))
    world = World(
        arguments.process_index, arguments.world_size, str(arguments.distributed_state.distributed_type.value)
    )
    launching.check_world(world, os.environ)
    set_seed(arguments.seed)
    # The first process fills the cache, the others take it.
    with PartialState().main_process_first():
        tokenized = tokenize(recipe, request, examined)
    data, arguments.max_length = tokenized.rows, tokenized.max_length
    model = _model(recipe, request, objective)
    if data.validation is None:
        arguments.eval_strategy = type(arguments.eval_strategy)("no")
    callbacks = [TrainingProof(), measure.StepClock(), *request.callbacks]
    trainer = objective.build_trainer(model, tokenized.renderer.tokenizer, data, arguments, callbacks)
    # Ours is the one bar; upstream's stay silent.
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if world.is_main and request.progress:
        trainer.add_callback(Progress(measure.peak_memory_bytes))
    speed = speed_up(model, detect_device().kind) if recipe.value("speed") != "off" else []
    return Prepared(
        trainer, model, tokenized.renderer, tokenized.checks, data, speed, models.count_parameters(model), world
    )


def run(recipe: ResolvedRecipe, request: RunRequest, examined: Examined) -> dict[str, Any]:
    """Train, evaluate and save; return the run's record, which stands in `result.json` too.

    Raises:
        UserError, LaunchError: as `prepare` raises them, before anything is written.
        NotTrainedError: training ran and did not train; the folder's record says so.
    """
    if request.dry_run:
        return _dry_run(recipe, request, examined)
    folder, started = examined.output_dir, time.perf_counter()
    made = launching.rank_from_environment() == 0 and not folder.exists()
    try:
        prepared = prepare(recipe, request, examined)
    except RecipeError:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    record = _record(recipe, request, examined, prepared)
    try:
        if prepared.world.is_main:
            # Only now that nothing can be refused any more is the earlier run given up.
            if request.overwrite:
                clear_run(folder)
            folder.mkdir(parents=True, exist_ok=True)
            results.write_text(folder / results.RECIPE_FILE, recipe_file(_with_absolute_paths(recipe)))
            results.write_result(folder, record)
        _train(recipe, request, examined, prepared, record)
        record |= {"status": "done", "exit_code": 0}
    except BaseException as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        record |= {"status": "failed", "exit_code": code, "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        if prepared.world.is_main:
            record["measured"]["total_seconds"] = time.perf_counter() - started
            results.write_result(folder, record)
    return record


def _train(
    recipe: ResolvedRecipe, request: RunRequest, examined: Examined, prepared: Prepared, record: dict[str, Any]
) -> None:
    """Evaluate, train, save and evaluate again, filling in the record."""
    trainer, folder = prepared.trainer, examined.output_dir
    clock, proof = _callback(trainer, measure.StepClock), _callback(trainer, TrainingProof)
    examples = prepared.data.held_out
    task = find_task(examples, (recipe.section("evaluation") or {})["task"])
    before = _evaluate(recipe, prepared, examples, task)
    measure.release_free_memory()
    measure.reset_peak_memory()
    trainer.train(resume_from_checkpoint=str(last_checkpoint(folder)) if request.resume else None)
    record["measured"] |= {
        "peak_memory_bytes": measure.peak_memory_bytes(),
        "tokens_per_second": clock.tokens_per_second(),
        "step_seconds": clock.step_median_seconds(),
        "steps": len(clock.step_seconds),
        "train_seconds": sum(clock.step_seconds),
        "first_step_seconds": clock.first_step_seconds,
    }
    record["loss_curve"] = [_point(log) for log in trainer.state.log_history if "loss" in log or "eval_loss" in log]
    record["proof"] = proof.result()
    record["data"]["ledger"] = prepared.data.ledger()
    # Before anything else can fail.
    if prepared.world.is_main:
        _save(prepared, folder)
        plot_losses(record["loss_curve"], folder / "loss.png", recipe.name)
    after = _evaluate(recipe, prepared, examples, task)
    if before and after:
        record["metrics"] = {
            "task": task,
            "split": examined.examples.held_out_split,
            "rows": len(examples),
            "before": before.values,
            "after": after.values,
            "intervals": {"before": before.intervals, "after": after.intervals},
            "confidence": (recipe.section("evaluation") or {})["confidence"],
            "examples": {"before": before.examples, "after": after.examples},
        }
    trainer.accelerator.wait_for_everyone()


def _arguments(recipe: ResolvedRecipe, request: RunRequest, examined: Examined) -> dict[str, Any]:
    arguments = dict(recipe.section("training") or {})
    if request.dry_run:
        arguments |= {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "report_to": "none"}
    return arguments | {"output_dir": str(examined.output_dir), "disable_tqdm": True}


def _model(recipe: ResolvedRecipe, request: RunRequest, objective: Objective) -> Any:
    adapter = recipe.section("adapter")
    model = request.model
    if model is None:
        model = models.load_base(objective.model_class(), recipe.section("model"), recipe.section("quantization"))
    # A caller's model that has its adapter already keeps it.
    if adapter and not hasattr(model, "peft_config"):
        model = models.add_adapter(model, adapter, objective.TASK_TYPE)
    return model


def _evaluate(recipe: ResolvedRecipe, prepared: Prepared, examples: Sequence[Example], task: str) -> Metrics | None:
    """Return the metrics of the model as it is now, every process having scored its share; None without rows."""
    if not examples:
        return None
    section, world = recipe.section("evaluation") or {}, prepared.world
    share = list(range(world.rank, len(examples), world.size))
    arguments = prepared.trainer.args
    # What generates here must multiply as it does in training: a float32 model under autocast is such a case.
    with torch.autocast(prepared.model.device.type, torch.bfloat16, enabled=bool(arguments.bf16)):
        scores = score_rows(
            prepared.model, prepared.renderer, [examples[index] for index in share], task, section,
            sorted(prepared.renderer.stop_ids), arguments.max_length,
        )  # fmt: skip
    numbered = list(zip(share, scores, strict=True))
    gathered = gather_object(numbered) if world.size > 1 else numbered
    return summarize([score for _, score in sorted(gathered, key=lambda pair: pair[0])], task, section, arguments.seed)


def _save(prepared: Prepared, folder: Path) -> None:
    """Write the adapter (or, without one, the whole model) and the tokenizer to the root of the run's folder."""
    model = prepared.trainer.accelerator.unwrap_model(prepared.trainer.model)
    card = folder / "README.md"
    had_card = card.exists()
    model.save_pretrained(str(folder))
    if card.exists() and not had_card:
        # PEFT's is a form to fill in, with a path of this machine as the base.
        card.unlink()
    prepared.renderer.tokenizer.save_pretrained(str(folder))


def _dry_run(recipe: ResolvedRecipe, request: RunRequest, examined: Examined) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(recipe, request, dataclasses.replace(examined, output_dir=Path(scratch)))
        prepared.trainer.train()
    record = _record(recipe, request, examined, prepared)
    record["measured"] |= {"peak_memory_bytes": measure.peak_memory_bytes()}
    record["loss_curve"] = [_point(log) for log in prepared.trainer.state.log_history if "loss" in log]
    return record | {"status": "dry_run", "exit_code": 0}


def _record(recipe: ResolvedRecipe, request: RunRequest, examined: Examined, prepared: Prepared) -> dict[str, Any]:
    examples, device = examined.examples, detect_device()
    return {
        "schema_version": results.SCHEMA_VERSION,
        "status": "running",
        "exit_code": None,
        "recipe": recipe.name,
        "objective": recipe.objective,
        "speed": prepared.speed,
        "command": request.command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "output_dir": str(examined.output_dir),
        "base_model": models.base_location(recipe.section("model")),
        "versions": measure.installed_versions(),
        "hardware": {"device": dataclasses.asdict(device), **measure.host_facts(), "processes": prepared.world.size},
        "seeds": {"training": prepared.trainer.args.seed, "data": prepared.trainer.args.data_seed},
        "data": {
            "dataset": examples.name,
            "format": examples.format,
            "fingerprint": examples.fingerprint,
            "columns": dict(examples.columns),
            "chat_template": prepared.renderer.has_template,
            "separator": prepared.renderer.separator,
            "mended": {"as_served": prepared.renderer.as_served, "closes": prepared.renderer.closes},
            "checks": [dataclasses.asdict(check) for check in prepared.checks],
            "rows": {
                "train": examples.train_rows, "validation": len(examples.validation), "held_out": len(examples.held_out)
            },
            "ledger": prepared.data.ledger(),
        },
        "parameters": dataclasses.asdict(prepared.parameters),
        "measured": {"peak_memory_bytes": None, "tokens_per_second": None, "step_seconds": None},
        "metrics": {"before": {}, "after": {}},
        "loss_curve": [],
    }  # fmt: skip


def _with_absolute_paths(recipe: ResolvedRecipe) -> ResolvedRecipe:
    """Return the recipe with local paths made absolute, so that its file works from any folder."""
    entries = type(recipe.entries)(recipe.entries)
    for path in (("model", "name_or_path"), ("data", "dataset")):
        if entry := entries.get(path):
            named = entry.value if isinstance(entry.value, list) else [entry.value]
            absolute = [_absolute(name) for name in named]
            value = absolute if isinstance(entry.value, list) else absolute[0]
            entries[path] = Entry(value, entry.origin, entry.reason)
    return dataclasses.replace(recipe, entries=entries)


def _absolute(name: Any) -> Any:
    path = Path(name).expanduser() if isinstance(name, (str, Path)) else None
    return str(path.resolve()) if path and path.exists() else name


def _callback(trainer: Any, kind: type[Any]) -> Any:
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind))


def _point(log: dict[str, Any]) -> dict[str, float]:
    kept = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
    return {key: float(log[key]) for key in kept if key in log}

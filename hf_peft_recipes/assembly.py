"""A run put together: data as tokens, model with adapter, trainer, faster paths; nothing is written yet."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_peft_recipes import adapters, launching, lineage, models
from hf_peft_recipes.data import Check, PreparedData, Renderer
from hf_peft_recipes.data.longest import longest_rows
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.evaluation import heaviest
from hf_peft_recipes.launching import World
from hf_peft_recipes.measure.clock import StepClock
from hf_peft_recipes.measure.memory import release_free_memory
from hf_peft_recipes.measure.phases import Phases
from hf_peft_recipes.methods import Material, Method
from hf_peft_recipes.methods.projectors import trust_projectors
from hf_peft_recipes.models import ParameterCount
from hf_peft_recipes.objectives import Objective, find_objective
from hf_peft_recipes.preflight import Examined, RunRequest
from hf_peft_recipes.proof import TrainingProof
from hf_peft_recipes.report.progress import Progress
from hf_peft_recipes.rows import tokenize
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts
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
    phases: Phases
    method: Method

    def release(self) -> None:
        """Give up the model and all that training held, so that another process has room for its own."""
        self.model = self.trainer = None
        release_free_memory()


def prepare(recipe: ResolvedRecipe, request: RunRequest, examined: Examined) -> Prepared:
    """Return the trainer with the model, the data and all that is measured along the way.

    Raises:
        UserError: the model, the data or the arguments do not go together.
        LaunchError: other processes came up than were asked for.
    """
    phases, objective, method = Phases(), find_objective(recipe.objective), Method(recipe)
    arguments = objective.training_arguments(_arguments(recipe, request, examined))
    world = World(
        arguments.process_index, arguments.world_size, str(arguments.distributed_state.distributed_type.value)
    )
    launching.check_world(world, os.environ)
    set_seed(arguments.seed)
    # The first process fills the cache, the others take it.
    with PartialState().main_process_first():
        tokenized = tokenize(recipe, request, examined.examples)
    data, arguments.max_length = tokenized.rows, tokenized.max_length
    phases.lap("data")
    tokenizer = tokenized.renderer.tokenizer
    material = Material(data.train, tokenizer, arguments.seed, recipe.section("model"))
    add_adapter = partial(method.add_adapter, task_type=objective.TASK_TYPE, material=material)
    model = _model(recipe, request, objective, tokenizer, add_adapter)
    if data.validation is None:
        arguments.eval_strategy = type(arguments.eval_strategy)("no")
    # Before a trainer adds a copy to compare with.
    parameters = models.count_parameters(model)
    parameters = replace(parameters, trainable=parameters.trainable - method.held)
    clock = StepClock(phases)
    callbacks = [TrainingProof(), clock, *request.callbacks]
    trainer = objective.build_trainer(model, tokenizer, data, arguments, callbacks)
    method.attach(trainer)
    trust_projectors(str(recipe.value("training.optim")))
    clock.watch(trainer)
    if request.longest:
        _keep_longest(trainer, data, tokenized.renderer, int((recipe.section("evaluation") or {})["batch_size"]))
    # Ours is the one bar; upstream's stay silent.
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if world.is_main and request.progress:
        trainer.add_callback(Progress(lambda: phases.peak_memory_bytes("train") or 0))
    faster = objective_facts(recipe.objective).packs and recipe.value("speed") != "off"
    speed = speed_up(model, detect_device().kind) if faster else []
    phases.lap("load")
    return Prepared(
        trainer, model, tokenized.renderer, tokenized.checks, data, speed, parameters, world, phases, method
    )


def _keep_longest(trainer: Any, data: PreparedData, renderer: Renderer, scored: int) -> None:
    """Leave the trainer the rows that ask most of memory, as many as all its steps use up, and some to score."""
    arguments = trainer.args
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    trainer.train_dataset = longest_rows(trainer.train_dataset, rows * arguments.max_steps)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = longest_rows(trainer.eval_dataset, arguments.eval_batch_size * arguments.world_size)
    data.held_out = heaviest(trainer.model, renderer, data.held_out, scored)


def _arguments(recipe: ResolvedRecipe, request: RunRequest, examined: Examined) -> dict[str, Any]:
    arguments = dict(recipe.section("training") or {})
    if request.dry_run:
        arguments |= {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "report_to": "none"}
    return arguments | {"output_dir": str(examined.output_dir), "disable_tqdm": True}


def _model(
    recipe: ResolvedRecipe, request: RunRequest, objective: Objective, tokenizer: Any, add_adapter: Callable[..., Any]
) -> Any:
    adapter = recipe.section("adapter")
    model = request.model
    if model is None:
        model = models.load_base(objective.model_class(), recipe.section("model"), recipe.section("quantization"))
        if adapter and adapter.get("adapter_name_or_path"):
            lineage.require_base(Path(adapter["adapter_name_or_path"]), recipe.section("model"))
    # A caller's model that has its adapter already keeps it.
    if adapter and not hasattr(model, "peft_config"):
        added = adapters.fit_vocabulary(model, tokenizer)
        settled = {
            "trainable_token_indices",
            "token_indices",
            "modules_to_save",
            "adapter_name_or_path",
        } & adapter.keys()
        if added and not settled:
            # A frozen embedding of a new token would stay what it was drawn as.
            adapter = {**adapter, "trainable_token_indices": dict.fromkeys(adapters.vocabulary_layers(model), added)}
        model = add_adapter(model, adapter)
    elif not adapter:
        adapters.fit_vocabulary(model, tokenizer)
    return model

"""A run put together: data as tokens, model with adapter, trainer, faster paths; nothing is written yet."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_peft_recipes import adapters, engines, launching, lineage, models
from hf_peft_recipes.checkpoints.resuming import share_rows
from hf_peft_recipes.data import Check, Maker, PreparedData
from hf_peft_recipes.data.longest import longest_rows
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.evaluation import heaviest
from hf_peft_recipes.finite import FiniteGuard, LossSpikes
from hf_peft_recipes.heads import find_head
from hf_peft_recipes.launching import World
from hf_peft_recipes.measure.clock import StepClock
from hf_peft_recipes.measure.memory import release_free_memory
from hf_peft_recipes.measure.phases import Phases
from hf_peft_recipes.methods import Material, Method
from hf_peft_recipes.methods.projectors import trust_projectors
from hf_peft_recipes.models import ParameterCount
from hf_peft_recipes.objectives import find_objective
from hf_peft_recipes.objectives.learning_signal import LearningSignal
from hf_peft_recipes.plan.bases import find_base
from hf_peft_recipes.plan.documents import Documents, documents_of
from hf_peft_recipes.plan.recomputing import choose_for_run
from hf_peft_recipes.preflight import Examined, RunRequest
from hf_peft_recipes.proof import TrainingProof
from hf_peft_recipes.report.progress import Progress
from hf_peft_recipes.rows import Tokenized, tokenize
from hf_peft_recipes.scorers.rewards import Reward, read_rewards
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts
from hf_peft_recipes.spec.recompute import NOTHING, Recompute, read_recompute
from hf_peft_recipes.speed import Speed, recompute, speed_up
from hf_peft_recipes.stopping import BudgetEnd, budget_arguments, stopping_callbacks
from hf_peft_recipes.trajectory import Trajectory


@dataclass
class Prepared:
    """Everything that a run needs, built and ready."""

    trainer: Any
    model: Any
    renderer: Maker
    checks: list[Check]
    data: PreparedData
    speed: list[str]
    """The faster paths that the model takes."""
    recompute: Recompute
    """Which of its layers are computed again on the way back."""
    parameters: ParameterCount
    world: World
    phases: Phases
    method: Method
    rewards: list[Reward]
    """What answers are worth; empty where nobody asks."""

    signal: LearningSignal | None = None
    """Whether rewards tell answers apart; None where there are no rewards."""
    told: Sequence[str] = ()
    """What to say of it before the first step, a line each."""

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
    if request.budget and world.size > 1:
        raise UserError("a budget is of one process: each of several would stop at a step of its own")
    set_seed(arguments.seed)
    # The first process fills the cache, the others take it.
    with PartialState().main_process_first():
        tokenized = tokenize(recipe, request, examined.examples)
    data, arguments.max_length = tokenized.rows, tokenized.max_length
    phases.lap("data")
    material = Material(data.train, tokenized.renderer.tokenizer, arguments.seed, recipe.section("model"))
    if data.validation is None:
        if arguments.load_best_model_at_end:
            raise UserError(
                "training.load_best_model_at_end: which checkpoint is the best one is known by held-out rows, "
                "and there are none (data.validation_size, evaluation.max_rows)"
            )
        arguments.eval_strategy = type(arguments.eval_strategy)("no")
    if examined.resumption and request.model is None:
        lineage.require_base(examined.output_dir, recipe.section("model"))
    model = _model(recipe, request, tokenized.renderer, method, material)
    # Before a trainer adds a copy to compare with.
    parameters = models.count_parameters(model)
    parameters = replace(parameters, trainable=parameters.trainable - method.held)
    clock = StepClock(phases)
    facts, evaluation = objective_facts(recipe.objective), recipe.section("evaluation") or {}
    stopping = stopping_callbacks(
        arguments, evaluation.get("early_stopping_patience"), evaluation.get("early_stopping_threshold")
    )
    if request.budget:
        stopping.append(BudgetEnd(request.budget, clock.tokens_seen))
    # Before the proof, which takes for granted that gradients are numbers.
    guard = FiniteGuard()
    proof = TrainingProof(facts.is_rewarded, not request.dry_run, guard.leaves_out)
    # The loss of what is rewarded stays about zero, whatever is learned: no leap of it means anything.
    watching = [guard, proof] if facts.is_rewarded else [guard, proof, LossSpikes()]
    callbacks = [*watching, clock, *stopping, *request.callbacks]
    rewards = read_rewards(recipe, request.rewards)
    further = {"rewards": rewards} if facts.is_rewarded else {}
    trainer = objective.build_trainer(model, tokenized.renderer.tokenizer, data, arguments, callbacks, **further)
    asked = engines.read_environment(os.environ)
    engines.check_came_up(asked, trainer.accelerator, arguments)
    kind = str(trainer.accelerator.distributed_type.value)
    world = replace(world, kind=kind, shards=kind in engines.SHARDING)
    method.attach(trainer)
    trust_projectors(str(recipe.value("training.optim")))
    guard.watch(trainer, data.train)
    clock.watch(trainer)
    if request.trajectory:
        Trajectory(request.trajectory).watch(trainer)
    if request.longest:
        _keep_longest(trainer, data, tokenized.renderer, int(evaluation["batch_size"]))
    # Ours is the one bar; upstream's stay silent.
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if world.is_main and request.progress:
        trainer.add_callback(Progress(lambda: phases.peak_memory_bytes("train") or 0))
    # Their shortcuts read weights that a process may hold in part.
    faster = recipe.value("speed") != "off" and not world.shards and not facts.compares
    compiled = bool(arguments.torch_compile)
    speed = speed_up(model, detect_device().kind, facts.packs, compiled) if faster else Speed([], [])
    again, told = _recompute(recipe, request, tokenized, world, model)
    phases.lap("load")
    return Prepared(
        trainer, model, tokenized.renderer, tokenized.checks, data, speed.paths, again, parameters, world, phases,
        method, rewards, trainer.signal if rewards else None, [*speed.told, *told],
    )  # fmt: skip


def _recompute(
    recipe: ResolvedRecipe, request: RunRequest, tokenized: Tokenized, world: World, model: Any
) -> tuple[Recompute, list[str]]:
    """Let the model compute again what is asked for, or what the plan says; return that, and what there is to tell."""
    asked = read_recompute(recipe.value("recompute"))
    if asked is not None:
        done = NOTHING if world.shards else recompute.install(model, asked)
        if done != asked:
            why = "of a model in parts upstream's training.activation_checkpointing computes blocks again"
            raise UserError(
                f"recompute = {str(asked)!r}: {why if world.shards else f'of this model {done} can be, no more'}"
            )
        return asked, []
    if world.shards:
        return NOTHING, []
    device = detect_device()
    if device.kind == "cpu":
        # They share the host's memory.
        device = replace(device, memory_bytes=device.memory_bytes // world.size)

    def look() -> Documents | None:
        return None if recipe.value("data.streaming") else documents_of(recipe, tokenized)

    chosen = choose_for_run(recipe, find_base(recipe.section("model"), request.model), device, world.size, look)
    return (recompute.install(model, chosen.amount), [chosen.told()]) if chosen else (NOTHING, [])


def _keep_longest(trainer: Any, data: PreparedData, renderer: Maker, scored: int) -> None:
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
        arguments["load_best_model_at_end"] = False
    elif request.budget:
        arguments |= budget_arguments()
    if examined.resumption and (batch := examined.resumption.batch):
        arguments["gradient_accumulation_steps"] = share_rows(
            batch, launching.size_from_environment(), int(arguments["per_device_train_batch_size"])
        )
    return arguments | {"output_dir": str(examined.output_dir), "disable_tqdm": True}


def _model(recipe: ResolvedRecipe, request: RunRequest, renderer: Maker, method: Method, material: Material) -> Any:
    adapter, head, tokenizer = recipe.section("adapter"), find_head(recipe.objective), renderer.tokenizer
    model = request.model
    if model is None:
        model = models.load_base(
            head.model_class(), recipe.section("model"), recipe.section("quantization"),
            head.loading(renderer.labels, tokenizer), recipe.value("training.seed") or 0,
        )  # fmt: skip
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
        if drawn := models.drawn_modules(model):
            # What no file holds goes with the adapter, or nobody else could load it.
            adapter = {**adapter, "modules_to_save": sorted({*(adapter.get("modules_to_save") or ()), *drawn})}
        model = method.add_adapter(model, adapter, head.TASK_TYPE, material)
    elif not adapter:
        adapters.fit_vocabulary(model, tokenizer)
    return model

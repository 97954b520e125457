"""A run that is finished: loaded from its folder, evaluated against its base, talked to."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_peft_recipes import adapters, lineage, models
from hf_peft_recipes.data import Example, Examples, Renderer, read
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.evaluation import Metrics, evaluation_section, find_task, score_rows, summarize
from hf_peft_recipes.generation import stream
from hf_peft_recipes.objectives import find_objective
from hf_peft_recipes.scorers.rewards import read_rewards
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts


@dataclass
class TrainedModel:
    """A trained model in memory, with what is needed to serve it as it was trained."""

    model: Any
    renderer: Renderer
    stop_ids: list[int]
    recipe: ResolvedRecipe

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter on a base was trained, rather than the whole model."""
        return hasattr(self.model, "disable_adapter")


def load(folder: Path, recipe: ResolvedRecipe, record: Mapping[str, Any]) -> TrainedModel:
    """Return the model that the run in `folder` trained.

    Args:
        folder: the run's folder.
        recipe: of its `recipe.yaml`.
        record: its `result.json`.

    Raises:
        UserError: the folder lacks what was trained, or the base cannot be loaded.
    """
    objective = find_objective(recipe.objective)
    own = {"name_or_path": str(folder)}
    tokenizer = models.load_tokenizer(own)
    # What lies there decides: after a merge the recipe still tells of an adapter.
    if recipe.section("adapter") and not (folder / "config.json").is_file():
        section = recipe.section("model")
        models.check_base(section)
        base = models.load_base(objective.model_class(), section, recipe.section("quantization"))
        lineage.require_base(folder, section)
        model = adapters.load_adapter(base, folder)
    else:
        models.check_base(own)
        model = models.load_base(objective.model_class(), {**(recipe.section("model") or {}), **own}, None)
    if torch.cuda.is_available() and not recipe.section("quantization"):
        model = model.cuda()
    stops = models.stop_ids(model.generation_config, tokenizer)
    data = recipe.section("data") or {}
    renderer = Renderer(tokenizer, stops, data["loss_on"], record["data"]["separator"])
    renderer.as_served, renderer.closes = record["data"]["mended"]["as_served"], record["data"]["mended"]["closes"]
    return TrainedModel(model.eval(), renderer, stops, recipe)


def evaluate(trained: TrainedModel, record: Mapping[str, Any], with_base: bool = True) -> dict[str, Any]:
    """Return the run's metrics on its held-out rows, measured now, and those of the base beside them.

    Args:
        trained: as `load` returns it.
        record: the run's `result.json`.
        with_base: whether to score the base too.

    Raises:
        UserError: the data cannot be read any more.
    """
    recipe = trained.recipe
    section = recipe.section("evaluation") or {}
    examples = read_held_out(recipe)
    rows = examples.held_out
    task = find_task(rows, section["task"])
    before = _base_metrics(trained, lambda model: score(trained, model, rows, task, record)) if with_base else None
    after = score(trained, trained.model, rows, task, record, before)
    return {
        "task": task,
        "split": examples.held_out_split,
        "rows": len(rows),
        "before": before.values if before else {},
        "after": after.values,
        "intervals": {"before": before.intervals if before else {}, "after": after.intervals},
        "confidence": section["confidence"],
        "examples": {"before": before.examples if before else [], "after": after.examples},
    }


def read_held_out(recipe: ResolvedRecipe) -> Examples:
    """Return the data that the recipe names, with the rows that are held out; there is at least one.

    Raises:
        UserError: the data cannot be read any more, or hold nothing out.
    """
    section = recipe.section("evaluation") or {}
    shape = objective_facts(recipe.objective).shape
    examples = read(recipe.section("data") or {}, section, recipe.value("training.seed") or 0, shape=shape)
    if not examples.held_out:
        raise UserError("there are no held-out rows to evaluate on (evaluation.max_rows, data.validation_size)")
    return examples


def score(
    trained: TrainedModel,
    model: Any,
    rows: Sequence[Example],
    task: str,
    record: Mapping[str, Any],
    before: Metrics | None = None,
) -> Metrics:
    """Return the metrics of a model on held-out rows, served and multiplied as the run's own model.

    Args:
        trained: the run's.
        model: that one, or another that takes its tokens.
        rows: held out.
        task: as `find_task` returns it.
        record: the run's `result.json`.
        before: of the base on the same rows, for what is measured from there.
    """
    recipe, section = trained.recipe, evaluation_section(trained.recipe)
    length = record["data"]["ledger"]["max_length"]
    rewards = read_rewards(recipe)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bool(recipe.value("training.bf16"))):
        scores = score_rows(model, trained.renderer, rows, task, section, trained.stop_ids, length, rewards)
    seed = recipe.value("training.seed") or 0
    return summarize(scores, task, section, seed, before.scores if before else None)


def answer(
    trained: TrainedModel, messages: Sequence[Mapping[str, str]], max_new_tokens: int, write: Callable[[str], Any]
) -> str:
    """Return the model's answer to a conversation, streaming its text to `write`.

    Raises:
        UserError: a conversation of several turns, and no chat template.
    """
    try:
        prompt = trained.renderer.serve(messages)
    except ValueError as error:
        raise UserError(str(error)) from None
    # As it was trained and scored: IA3 on a 4-bit base multiplies dtypes that only autocast brings together.
    enabled = bool(trained.recipe.value("training.bf16"))
    with torch.autocast(trained.model.device.type, torch.bfloat16, enabled=enabled):
        return stream(trained.model, trained.renderer.tokenizer, prompt, trained.stop_ids, max_new_tokens, write)


def _base_metrics(trained: TrainedModel, metrics: Callable[[Any], Metrics]) -> Metrics:
    recipe = trained.recipe
    model, without = trained.model, nullcontext()
    if trained.has_adapter:
        without = trained.model.disable_adapter()
    else:
        model = models.load_base(find_objective(recipe.objective).model_class(), recipe.section("model"), None)
        model = model.to(trained.model.device)
    with without:
        return metrics(model)

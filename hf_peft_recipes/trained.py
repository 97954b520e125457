"""A run that is finished: evaluated against its base, talked to."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch

from hf_peft_recipes import models
from hf_peft_recipes.data import Example, Examples, read
from hf_peft_recipes.data.encoders import Labeller, Tagger
from hf_peft_recipes.data.entities import tag_text
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.evaluation import Metrics, compared, evaluation_section, find_task, score_rows, summarize
from hf_peft_recipes.finished import TrainedModel, load
from hf_peft_recipes.generation import generate, stream
from hf_peft_recipes.heads import find_head
from hf_peft_recipes.scorers.rewards import read_rewards
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts

__all__ = ["TrainedModel", "answer", "answers", "evaluate", "load", "on_base", "read_held_out", "score"]

Found = TypeVar("Found")


def evaluate(
    trained: TrainedModel, record: Mapping[str, Any], with_base: bool = True, confidence: float | None = None
) -> dict[str, Any]:
    """Return the run's metrics on its held-out rows, measured now, and those of the base beside them.

    Args:
        trained: as `load` returns it.
        record: the run's `result.json`.
        with_base: whether to score the base too.
        confidence: of the intervals; None for the recipe's.

    Raises:
        UserError: the data cannot be read any more.
    """
    recipe = trained.recipe
    section = evaluation_section(recipe)
    section["confidence"] = section["confidence"] if confidence is None else confidence
    examples = read_held_out(recipe)
    rows = examples.held_out
    task = find_task(rows, section["task"], objective_facts(recipe.objective).head)

    def scored(model: Any, before: Metrics | None = None) -> Metrics:
        return score(trained, model, rows, task, record, before, section)

    before = on_base(trained, scored) if with_base else None
    after = scored(trained.model, before)
    return compared(task, examples.held_out_split, len(rows), before, after, section)


def read_held_out(recipe: ResolvedRecipe) -> Examples:
    """Return the data that the recipe names, with the rows that are held out; there is at least one.

    Raises:
        UserError: the data cannot be read any more, or hold nothing out.
    """
    section = recipe.section("evaluation") or {}
    examples = read(recipe.section("data") or {}, section, recipe.value("training.seed") or 0, shape=recipe.shape)
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
    section: Mapping[str, Any] | None = None,
) -> Metrics:
    """Return the metrics of a model on held-out rows, served and multiplied as the run's own model.

    Args:
        trained: the run's.
        model: that one, or another that takes its tokens.
        rows: held out.
        task: as `find_task` returns it.
        record: the run's `result.json`.
        before: of the base on the same rows, for what is measured from there.
        section: how they are scored; None for the recipe's section `evaluation`.
    """
    recipe, section = trained.recipe, section or evaluation_section(trained.recipe)
    length = record["data"]["ledger"]["max_length"]
    rewards = read_rewards(recipe)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bool(recipe.value("training.bf16"))):
        head = objective_facts(recipe.objective).head
        scores = score_rows(model, trained.renderer, rows, task, section, trained.stop_ids, length, head, rewards)
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
    if isinstance(trained.renderer, (Labeller, Tagger)):
        write(told := _told(trained, trained.renderer, messages, prompt))
        return told
    if not objective_facts(trained.recipe.objective).writes:
        raise UserError("a reward model scores answers and writes none; its model card shows how to ask it")
    # As it was trained and scored: IA3 on a 4-bit base multiplies dtypes that only autocast brings together.
    enabled = bool(trained.recipe.value("training.bf16"))
    with torch.autocast(trained.model.device.type, torch.bfloat16, enabled=enabled):
        return stream(trained.model, trained.renderer.tokenizer, prompt, trained.stop_ids, max_new_tokens, write)


def _told(
    trained: TrainedModel, renderer: Labeller | Tagger, messages: Sequence[Mapping[str, str]], ids: list[int]
) -> str:
    """Return the likeliest label and its probability, or each tagged word with its tag."""
    values = find_head(trained.recipe.objective).values(trained.model, ids, [])
    if isinstance(renderer, Labeller):
        best = int(values[0].argmax())
        return f"{renderer.labels[best]} ({float(values[0, best].exp()):.1%})"
    words = tuple(re.findall(r"\w+|[^\w\s]", messages[-1]["content"]))
    sentence: dict[str, Any] = {"role": "user", "content": " ".join(words)}
    example = Example((*messages[:-1], sentence, {"role": "assistant", "content": ""}), tokens=words)
    values = find_head(trained.recipe.objective).values(trained.model, renderer.prompt(example), [])
    places = renderer.positions(example)
    tags = [renderer.labels[int(values[place].argmax())] if place is not None else "O" for place in places]
    return tag_text(words, tags)


def answers(
    trained: TrainedModel, model: Any, prompts: Sequence[str], max_new_tokens: int, batch_size: int
) -> list[str]:
    """Return a model's greedy answer to every prompt, each a conversation of one turn.

    Args:
        trained: the run's, whose template and stop ids serve.
        model: its own, or its base.
        prompts: what a user says.
        max_new_tokens: the longest answer.
        batch_size: prompts at a time.
    """
    tokenizer = trained.renderer.tokenizer
    served = [trained.renderer.serve([{"role": "user", "content": prompt}]) for prompt in prompts]
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bool(trained.recipe.value("training.bf16"))):
        ids = generate(model, served, trained.stop_ids, tokenizer.pad_token_id, max_new_tokens, batch_size)
    return [str(text).strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def on_base(trained: TrainedModel, work: Callable[[Any], Found]) -> Found:
    """Return what `work` makes of the model that training began with: the adapter switched off, or the base loaded."""
    recipe = trained.recipe
    model, without = trained.model, nullcontext()
    if trained.has_adapter:
        without = trained.model.disable_adapter()
    else:
        head = find_head(recipe.objective)
        loading = head.loading(trained.renderer.labels, trained.renderer.tokenizer)
        seed = recipe.value("training.seed") or 0
        model = models.load_base(head.model_class(), recipe.section("model"), None, loading, seed)
        model = model.to(trained.model.device)
    with without:
        return work(model)

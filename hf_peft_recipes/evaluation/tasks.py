"""Held-out rows scored one by one, by the task that they are: so several processes can each score a share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_peft_recipes.data import Example, Maker, Renderer
from hf_peft_recipes.evaluation.entities import are_entities
from hf_peft_recipes.evaluation.head_scores import SCORED, with_answers
from hf_peft_recipes.evaluation.losses import row_losses
from hf_peft_recipes.evaluation.matching import ends_in_marked_number
from hf_peft_recipes.evaluation.metrics import TASKS
from hf_peft_recipes.evaluation.scores import RowScore
from hf_peft_recipes.evaluation.worth import worths
from hf_peft_recipes.generation import generate
from hf_peft_recipes.heads import head_of
from hf_peft_recipes.scorers.label import normalized
from hf_peft_recipes.scorers.rewards import Reward
from hf_peft_recipes.spec import ResolvedRecipe

MAX_CLASSES = 20
"""More different answers than this are no classification."""
_ROWS_PER_CLASS = 5
_EXACT_ANSWER_CHARACTERS = 32
_OF_HEAD = {"sequence_classification": "classification", "reward": "scored"}
"""What models are scored by that write nothing."""


def find_task(examples: Sequence[Example], task: str, head: str = "causal_lm") -> str:
    """Return how the examples are scored: one of `TASKS`.

    Args:
        examples: held-out rows.
        task: the recipe's word; `auto` looks at the answers: pairs and judged ones are told as such, so are results
            behind `####` and entities that are written out; a few that recur are labels, short ones are matched.
            `text` is by loss and perplexity alone; what takes long answers, `generation`, is asked for by name.
        head: what the model gives out; it decides where that is no text.
    """
    if head == "token_classification":
        # Tags of entities have an outside; parts of speech and their kin have none.
        return "entities" if any("O" in example.tags for example in examples) else "tags"
    if task != "auto" or head in _OF_HEAD:
        return _OF_HEAD.get(head, task)
    found = _looked_at(examples)
    # Such a model is made to write, however long it takes.
    return "generation" if (head, found) == ("seq2seq_lm", "text") else found


def _looked_at(examples: Sequence[Example]) -> str:
    """Return the task that the answers look like."""
    if any(example.rejected for example in examples):
        return "preference"
    if any(example.label is not None for example in examples):
        return "judged"
    references = [example.reference for example in examples]
    if not references or any(reference is None for reference in references):
        return "text"
    answers = [str(reference) for reference in references]
    if all(map(ends_in_marked_number, answers)):
        return "numeric"
    if are_entities(answers):
        return "entities"
    if max(map(len, answers)) > _EXACT_ANSWER_CHARACTERS:
        return "text"
    classes = {normalized(answer) for answer in answers}
    if 2 <= len(classes) <= MAX_CLASSES and len(answers) >= _ROWS_PER_CLASS * len(classes):
        return "classification"
    return "exact_match"


def score_rows(
    model: Any,
    renderer: Maker,
    examples: Sequence[Example],
    task: str,
    section: Mapping[str, Any],
    stop_ids: Sequence[int],
    max_length: int | None,
    head: str = "causal_lm",
    rewards: Sequence[Reward] = (),
) -> list[RowScore]:
    """Return the score of every example, in order.

    Args:
        model: a causal language model.
        renderer: made for the model's tokenizer.
        examples: held-out rows.
        task: one of `TASKS`.
        section: the recipe's `evaluation` section.
        stop_ids: ids that end an answer.
        max_length: tokens of a row beyond this are not scored; None for all.
        head: what the model gives out.
        rewards: by which answers are scored too.

    Raises:
        RewardError: a reward function failed.
    """
    if head in SCORED:
        return _by_head(head, model, renderer, examples, task, section, max_length)
    assert isinstance(renderer, Renderer)
    losses = _losses_of_answers(model, renderer, examples, max_length)
    answers: list[str | None] = [None] * len(examples)
    worth: list[dict[str, float]] = [{} for _ in examples]
    if (TASKS[task].generates or rewards) and examples:
        tokenizer = renderer.tokenizer
        produced = generate(
            model,
            [renderer.prompt(example) for example in examples],
            stop_ids,
            tokenizer.pad_token_id,
            answer_tokens(tokenizer, examples, section),
            section["batch_size"],
        )
        answers = [text.strip() for text in tokenizer.batch_decode(produced, skip_special_tokens=True)]
        worth = worths(rewards, renderer, examples, produced)
    scores = [
        RowScore(loss, tokens, answer, example.reference, wanted=example.label, rewards=by_name)
        for (loss, tokens), answer, example, by_name in zip(losses, answers, examples, worth, strict=True)
    ]
    if task != "preference":
        return scores
    refused = row_losses(model, renderer, [example.refused for example in examples], max_length)
    return [replace(score, rejected=loss) for score, loss in zip(scores, refused, strict=True)]


def _by_head(
    head: str,
    model: Any,
    renderer: Maker,
    examples: Sequence[Example],
    task: str,
    section: Mapping[str, Any],
    max_length: int | None,
) -> list[RowScore]:
    """Return the scores of a model that does not write on."""
    scores = SCORED[head](head_of(head), model, renderer, examples, max_length)
    if head != "seq2seq_lm" or not examples or task == "text":
        return scores
    tokens = answer_tokens(renderer.tokenizer, examples, section)
    return with_answers(scores, model, renderer, examples, tokens, section["batch_size"])


def evaluation_section(recipe: ResolvedRecipe) -> dict[str, Any]:
    """Return the recipe's `evaluation` section; what learns by answering is scored on answers of the same length."""
    section, longest = recipe.section("evaluation") or {}, recipe.value("training.max_completion_length")
    return {**section, "max_new_tokens": section.get("max_new_tokens") or longest}


def _losses_of_answers(
    model: Any, renderer: Renderer, examples: Sequence[Example], max_length: int | None
) -> list[tuple[float, int]]:
    """Return loss and tokens of every row; nothing of a prompt alone, whose answer nobody knows."""
    answered = [at for at, example in enumerate(examples) if not example.is_prompt]
    losses = [(0.0, 0)] * len(examples)
    found = row_losses(model, renderer, [examples[at] for at in answered], max_length)
    for at, loss in zip(answered, found, strict=True):
        losses[at] = loss
    return losses


def answer_tokens(tokenizer: Any, examples: Sequence[Example], section: Mapping[str, Any]) -> int:
    """Return how many tokens an answer may have: as the recipe says, or as the longest reference has.

    Args:
        tokenizer: of the model.
        examples: held-out rows, one at the least.
        section: the recipe's `evaluation` section.
    """
    longest = max(len(tokenizer(str(example.reference)).input_ids) for example in examples)
    # One more for the end token, and one for a space that begins the answer.
    return int(section["max_new_tokens"] or longest + 2)

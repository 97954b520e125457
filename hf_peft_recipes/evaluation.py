"""How good a model is on held-out rows: loss, perplexity and the task's metric, each with its bootstrap interval.

Rows are scored one by one and the metrics made from the scores, so that several processes can each score a share.
Nothing is packed here: a row never sees another one.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from hf_peft_recipes.data import Example, Renderer
from hf_peft_recipes.data.formats import BadRowError
from hf_peft_recipes.data.rendering import IGNORED, TokenRow
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.generation import generate, inference
from hf_peft_recipes.scorers import SCORERS
from hf_peft_recipes.scorers.label import normalized

MAX_CLASSES = 20
"""More different answers than this are no classification."""
_ROWS_PER_CLASS = 5
_EXACT_ANSWER_CHARACTERS = 32
BATCH_LOGIT_BYTES = 512 * 2**20
"""What the logits of one batch may take, in float32."""
BATCH_TOKENS = 16_384
"""Tokens of a batch at the most, where a small vocabulary would let in more: hidden states take memory too."""


@dataclass(frozen=True)
class RowScore:
    """One held-out row under one model."""

    negative_log_likelihood: float
    """Summed over the row's supervised tokens, in nats."""
    tokens: int
    answer: str | None
    reference: str | None


@dataclass(frozen=True)
class Metrics:
    """Metric names to values, and to the interval in which the value lies."""

    values: dict[str, float]
    intervals: dict[str, list[float]]
    examples: list[dict[str, str | None]]
    """A few answers beside their references."""


def find_task(examples: Sequence[Example], task: str) -> str:
    """Return how the examples are scored: `classification`, `exact_match` or `text` (loss and perplexity alone).

    Args:
        examples: held-out rows.
        task: the recipe's word; `auto` looks at the answers: a few that recur are labels, short ones are matched.
    """
    references = [example.reference for example in examples]
    if task != "auto":
        return task
    if not references or any(reference is None for reference in references):
        return "text"
    answers = [str(reference) for reference in references]
    if max(map(len, answers)) > _EXACT_ANSWER_CHARACTERS:
        return "text"
    classes = {normalized(answer) for answer in answers}
    if 2 <= len(classes) <= MAX_CLASSES and len(answers) >= _ROWS_PER_CLASS * len(classes):
        return "classification"
    return "exact_match"


def score_rows(
    model: Any,
    renderer: Renderer,
    examples: Sequence[Example],
    task: str,
    section: Mapping[str, Any],
    stop_ids: Sequence[int],
    max_length: int | None,
) -> list[RowScore]:
    """Return the score of every example, in order.

    Args:
        model: a causal language model.
        renderer: made for the model's tokenizer.
        examples: held-out rows.
        task: as `find_task` returns it; `text` generates nothing.
        section: the recipe's `evaluation` section.
        stop_ids: ids that end an answer.
        max_length: tokens of a row beyond this are not scored; None for all.
    """
    losses = _losses(model, renderer, examples, max_length)
    answers: list[str | None] = [None] * len(examples)
    if task != "text" and examples:
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
    return [
        RowScore(loss, tokens, answer, example.reference)
        for (loss, tokens), answer, example in zip(losses, answers, examples, strict=True)
    ]


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


def summarize(scores: Sequence[RowScore], task: str, section: Mapping[str, Any], seed: int) -> Metrics:
    """Return the metrics over the rows, with percentile bootstrap intervals (Efron 1979) over resampled rows.

    Args:
        scores: one a row.
        task: as `find_task` returns it.
        section: the recipe's `evaluation` section: `bootstrap_samples`, `confidence`.
        seed: of the resampling.
    """
    random = numpy.random.default_rng(seed)
    samples, tail = int(section["bootstrap_samples"]), (1 - float(section["confidence"])) / 2
    resampled: dict[str, Any] = {}
    values: dict[str, float] = {}
    sums = numpy.array([score.negative_log_likelihood for score in scores])
    counts = numpy.array([score.tokens for score in scores])
    chosen = random.integers(0, len(scores), size=(samples, len(scores)))
    values["loss"] = float(sums.sum() / max(counts.sum(), 1))
    resampled["loss"] = sums[chosen].sum(1) / numpy.maximum(counts[chosen].sum(1), 1)
    # Beyond e^700 a float has no room; the loss says all there is to say.
    values["perplexity"] = math.exp(min(values["loss"], 700.0))
    resampled["perplexity"] = numpy.exp(numpy.minimum(resampled["loss"], 700.0))
    if task == "exact_match":
        right = numpy.array([SCORERS["exact"](str(score.answer), str(score.reference)) for score in scores])
        values["exact_match"], resampled["exact_match"] = float(right.mean()), right[chosen].mean(1)
    if task == "classification":
        values |= _classification_values(scores)
        table = confusion(scores)
        # Resampling rows is drawing the cells of the table with their frequencies.
        drawn = random.multinomial(len(scores), table.ravel() / table.sum(), size=samples)
        resampled |= classification_metrics(drawn.reshape(samples, *table.shape))
    intervals = {
        name: [float(numpy.quantile(draws, tail)), float(numpy.quantile(draws, 1 - tail))]
        for name, draws in resampled.items()
    }
    examples = [{"answer": score.answer, "reference": score.reference} for score in scores[:5]]
    return Metrics(values, intervals, examples if task != "text" else [])


def confusion(scores: Sequence[RowScore]) -> Any:
    """Return counts of shape (labels, labels + 1): reference by answer, the last column for what is no label."""
    labels = sorted({normalized(str(score.reference)) for score in scores})
    index = {label: number for number, label in enumerate(labels)}
    table = numpy.zeros((len(labels), len(labels) + 1))
    pairs = Counter((normalized(str(score.reference)), normalized(str(score.answer))) for score in scores)
    for (reference, answer), number in pairs.items():
        table[index[reference], index.get(answer, len(labels))] += number
    return table


def classification_metrics(tables: Any) -> dict[str, Any]:
    """Return accuracy and macro precision, recall and F1, each of shape (n,), for n confusion tables.

    A ratio without cases counts as 0, as scikit-learn's `zero_division=0` has it; labels are averaged alike.

    Args:
        tables: counts of shape (n, labels, labels + 1), as `confusion` makes them.
    """
    right = numpy.diagonal(tables[:, :, :-1], axis1=1, axis2=2)
    answered, actual = tables[:, :, :-1].sum(1), tables.sum(2)
    precision = right / numpy.maximum(answered, 1)
    recall = right / numpy.maximum(actual, 1)
    f1 = 2 * right / numpy.maximum(answered + actual, 1)
    return {
        "accuracy": right.sum(1) / tables.sum((1, 2)),
        "macro_f1": f1.mean(1),
        "macro_precision": precision.mean(1),
        "macro_recall": recall.mean(1),
    }


def _classification_values(scores: Sequence[RowScore]) -> dict[str, float]:
    """Return scikit-learn's figures, which `classification_metrics` must agree with."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    references = [normalized(str(score.reference)) for score in scores]
    answers = [normalized(str(score.answer)) for score in scores]
    precision, recall, f1, _ = precision_recall_fscore_support(
        references, answers, labels=sorted(set(references)), average="macro", zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(references, answers)),
        "macro_f1": float(f1),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
    }


def _losses(
    model: Any, renderer: Renderer, examples: Sequence[Example], max_length: int | None
) -> list[tuple[float, int]]:
    """Return the summed loss and the number of supervised tokens of every example."""
    rows = [scored_row(row) for row in renderer.rows(examples)]
    losses: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    with inference(model):
        for batch, ids, labels, mask in padded_batches(rows, max_length, batch_tokens(model)):
            for index, loss in zip(batch, _batch_losses(model, ids, labels, mask), strict=True):
                losses[index] = loss
    return losses


def batch_tokens(model: Any) -> int:
    """Return how many tokens are scored at a time, padding included."""
    return min(BATCH_TOKENS, BATCH_LOGIT_BYTES // (4 * int(model.config.get_text_config().vocab_size)))


def heaviest(model: Any, renderer: Renderer, examples: Sequence[Example], batch_size: int) -> list[Example]:
    """Return the examples that ask most of memory when they are scored: the longest ones.

    Args:
        model: that is to score them.
        renderer: made for its tokenizer.
        examples: held-out rows.
        batch_size: that are answered at a time; so many are returned, and as many as two batches of scoring take.
    """
    lengths = [len(scored_row(row).input_ids) for row in renderer.rows(examples)]
    order = sorted(range(len(examples)), key=lambda index: -lengths[index])
    room, taken = 2 * batch_tokens(model), 0
    while taken < len(order) and (taken < batch_size or room > 0):
        room -= lengths[order[taken]]
        taken += 1
    return [examples[index] for index in order[:taken]]


def padded_batches(
    rows: Sequence[TokenRow], max_length: int | None, most_tokens: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield the numbers of some rows, and their ids, labels and mask of shape (rows, tokens); longest rows first.

    Args:
        rows: of tokens.
        max_length: tokens of a row beyond this are left out; None for all.
        most_tokens: tokens of a batch, padding included; a longer row makes a batch of its own.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    while order:
        width = min(len(rows[order[-1]].input_ids), max_length or len(rows[order[-1]].input_ids))
        number = max(1, most_tokens // width)
        batch, order = order[-number:], order[:-number]
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        labels = torch.full((len(batch), width), IGNORED)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for at, index in enumerate(batch):
            length = min(len(rows[index].input_ids), width)
            ids[at, :length] = torch.tensor(rows[index].input_ids[:length])
            labels[at, :length] = torch.tensor(rows[index].labels[:length])
            mask[at, :length] = 1
        yield batch, ids, labels, mask


def scored_row(row: TokenRow | BadRowError) -> TokenRow:
    """Return the row.

    Raises:
        UserError: it could not be rendered.
    """
    if isinstance(row, BadRowError):
        raise UserError(f"a held-out row cannot be scored: {row}")
    return row


def _batch_losses(model: Any, ids: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> list[tuple[float, int]]:
    targets = labels[:, 1:]
    # Logits are made only where some row has a target: prompts are long and vocabularies are large.
    positions = (targets != IGNORED).any(0).nonzero().flatten()
    if len(positions) == 0:
        return [(0.0, 0)] * len(ids)
    device = model.device
    logits = model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, logits_to_keep=positions.to(device)
    ).logits
    wanted = targets[:, positions].to(device)
    # Rows of logits end to end: with the vocabulary in the middle cross entropy would make a copy of all of them first.
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return list(zip(loss.view(wanted.shape).sum(1).tolist(), (wanted != IGNORED).sum(1).tolist(), strict=True))

"""Held-out rows scored by models that do not write on: their labels, their tags, their scores, what they rewrite."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from hf_peft_recipes.data import Example, Maker
from hf_peft_recipes.data.encoders import Tagger
from hf_peft_recipes.data.formats import BadRowError
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.evaluation.scores import RowScore
from hf_peft_recipes.generation import generate, inference
from hf_peft_recipes.generation.likelihoods import BATCH_LOGIT_BYTES, BATCH_TOKENS
from hf_peft_recipes.heads import Scoring


def labelled(
    head: Scoring, model: Any, renderer: Maker, examples: Sequence[Example], limit: int | None
) -> list[RowScore]:
    """Return, of each text, the likeliest label beside the right one."""
    scores: list[RowScore | None] = [None] * len(examples)
    for numbers, logits, targets, _ in _scored(head, model, renderer, examples, limit):
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
        for number, loss, found in zip(numbers, losses, logits.argmax(-1).tolist(), strict=True):
            reference = str(examples[number].reference).strip()
            scores[number] = RowScore(loss, 1, renderer.labels[found], reference)
    return [score for score in scores if score]


def tagged(
    head: Scoring, model: Any, renderer: Maker, examples: Sequence[Example], limit: int | None
) -> list[RowScore]:
    """Return, of each sentence, the likeliest tag of every word beside the right ones.

    A word that has no token, or stands beyond the limit, has none: it is outside of every entity.
    """
    assert isinstance(renderer, Tagger)
    outside = "O" if "O" in renderer.labels else renderer.labels[0]
    scores: list[RowScore | None] = [None] * len(examples)
    for numbers, logits, targets, rows in _scored(head, model, renderer, examples, limit):
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").cpu()
        found = logits.argmax(-1).cpu()
        for at, number in enumerate(numbers):
            own = rows == at
            places = renderer.positions(examples[number])
            carrying = sorted({place for place in places if place is not None})
            # Those beyond the limit are missing at the end.
            tags_at = dict(zip(carrying, found[own].tolist(), strict=False))
            tags = tuple(renderer.labels[tags_at[place]] if place in tags_at else outside for place in places)
            scores[number] = RowScore(
                float(losses[own].sum()), int(own.sum()), reference=str(examples[number].reference),
                tags=tags, reference_tags=examples[number].tags,
            )  # fmt: skip
    return [score for score in scores if score]


def rewarded(
    head: Scoring, model: Any, renderer: Maker, examples: Sequence[Example], limit: int | None
) -> list[RowScore]:
    """Return, of each pair, the loss of preferring the wanted answer, and both scores.

    The loss is that of Bradley and Terry's model, -log σ(wanted − refused), in nats.
    """
    sides = [examples, [example.refused for example in examples]]
    wanted, refused = ([0.0] * len(examples), [0.0] * len(examples))
    for side, found in zip(sides, (wanted, refused), strict=True):
        for numbers, logits, _, _ in _scored(head, model, renderer, side, limit):
            for number, score in zip(numbers, logits[:, 0].tolist(), strict=True):
                found[number] = score
    margins = torch.tensor(wanted) - torch.tensor(refused)
    losses = torch.nn.functional.softplus(-margins).tolist()
    pairs = zip(losses, wanted, refused, strict=True)
    return [RowScore(loss, 1, values=(good, bad)) for loss, good, bad in pairs]


def rewritten(
    head: Scoring, model: Any, renderer: Maker, examples: Sequence[Example], limit: int | None
) -> list[RowScore]:
    """Return, of each source, the loss of its target."""
    sums, counts = [0.0] * len(examples), [0] * len(examples)
    for numbers, logits, targets, rows in _scored(head, model, renderer, examples, limit):
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").cpu()
        for at, number in enumerate(numbers):
            sums[number], counts[number] = float(losses[rows == at].sum()), int((rows == at).sum())
    figures = zip(sums, counts, examples, strict=True)
    return [RowScore(loss, count, reference=example.reference) for loss, count, example in figures]


def with_answers(
    scores: Sequence[RowScore], model: Any, renderer: Maker, examples: Sequence[Example], tokens: int, batch_size: int
) -> list[RowScore]:
    """Return the scores with what the model writes, greedily.

    Args:
        scores: of the examples.
        model: an encoder and a decoder.
        renderer: made for its tokenizer.
        examples: held-out rows.
        tokens: the longest answer.
        batch_size: rows at a time.
    """
    tokenizer = renderer.tokenizer
    prompts = [renderer.prompt(example) for example in examples]
    produced = generate(model, prompts, sorted(renderer.stop_ids), tokenizer.pad_token_id, tokens, batch_size)
    answers = tokenizer.batch_decode(produced, skip_special_tokens=True)
    return [replace(score, answer=answer.strip()) for score, answer in zip(scores, answers, strict=True)]


Scored = Callable[[Any, Any, Maker, Sequence[Example], int | None], list[RowScore]]

SCORED: dict[str, Scored] = {
    "sequence_classification": labelled,
    "token_classification": tagged,
    "reward": rewarded,
    "seq2seq_lm": rewritten,
}
"""Head to what scores the rows of its models; causal language models are scored by `losses`."""


def _scored(
    head: Scoring, model: Any, renderer: Maker, examples: Sequence[Example], limit: int | None
) -> Iterator[tuple[list[int], Any, Any, Any]]:
    """Yield numbers of examples, logits, targets and which of the numbers each is of; the longest rows first."""
    made: list[Any] = list(renderer.rows(examples))
    bad = next((row for row in made if isinstance(row, BadRowError)), None)
    if bad is not None:
        raise UserError(f"a held-out row cannot be scored: {bad}")
    rows = [row.cut(limit, False)[0] if limit is not None and row.length > limit else row for row in made]
    collate, order = head.collator(renderer.tokenizer), sorted(range(len(rows)), key=lambda at: -rows[at].length)
    with inference(model):
        while order:
            number = max(1, _batch_tokens(model) // rows[order[0]].length)
            batch, order = order[:number], order[number:]
            yield batch, *head.logits(model, collate([rows[at].columns() for at in batch]))


def _batch_tokens(model: Any) -> int:
    """Return how many tokens go through the model at a time."""
    config = model.config.get_text_config()
    classes = config.vocab_size if config.is_encoder_decoder else getattr(config, "num_labels", 2)
    return min(BATCH_TOKENS, BATCH_LOGIT_BYTES // (4 * max(1, int(classes))))

"""How far a model with labels has moved from another: the divergence of what both give out for them."""

from collections.abc import Sequence
from typing import Any

from hf_peft_recipes.generation import inference
from hf_peft_recipes.generation.divergence import MAX_TOKENS, Divergence
from hf_peft_recipes.heads import Scoring


def measure_head(
    head: Scoring, reference: Any, model: Any, rows: Sequence[Any], tokenizer: Any, max_length: int | None
) -> Divergence:
    """Return how far `model` is from `reference` in what both give out for the rows' labels.

    Args:
        head: of both.
        reference: a model.
        model: another with the same labels; on the same device, or another.
        rows: of the head's shape.
        tokenizer: of both.
        max_length: tokens of a row beyond this are left out; None for all.
    """
    collate, total, largest, same, count = head.collator(tokenizer), 0.0, 0.0, 0, 0
    cut = [row.cut(max_length, False)[0] if max_length is not None and row.length > max_length else row for row in rows]
    with inference(reference), inference(model):
        for row in cut:
            batch = collate([row.columns()])
            expected, found = (head.logits(one, batch)[0].cpu().log_softmax(-1) for one in (reference, model))
            each = (expected.exp() * (expected - found)).sum(-1)
            total, largest = total + float(each.double().sum()), max(largest, float(each.max()))
            same, count = same + int((expected.argmax(-1) == found.argmax(-1)).sum()), count + len(each)
            if count >= MAX_TOKENS:
                break
    return Divergence(max(total / max(count, 1), 0.0), largest, count, same / max(count, 1))

"""How far a model has moved from another: the Kullback-Leibler divergence of its next-token distributions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_peft_recipes.data.rendering import IGNORED, TokenRow
from hf_peft_recipes.generation.greedy import inference
from hf_peft_recipes.generation.likelihoods import BATCH_LOGIT_BYTES, padded_batches

MAX_TOKENS = 8192
"""Tokens that are compared at most: the mean of so many is steady to a few percent."""
_CHUNK_BYTES = 64 * 2**20
"""What one temporary of the comparison may take, in float32."""


@dataclass(frozen=True)
class Divergence:
    """The divergence of one model from another, over the same tokens."""

    mean: float
    """KL(reference ‖ model) per token, in nats."""
    largest: float
    """The same at the worst token."""
    tokens: int
    same_choice: float
    """The share of the tokens at which both models hold the same next token the likeliest."""


class WithoutAdapter:
    """The base below an adapter, as a model of its own: every pass through it goes past the adapter."""

    def __init__(self, model: Any) -> None:
        """Args:
        model: of PEFT.
        """
        self._model = model

    def __call__(self, **inputs: Any) -> Any:
        """Return what the base gives out."""
        with self._model.disable_adapter():
            return self._model(**inputs)

    def __getattr__(self, name: str) -> Any:
        """Return what the model has of that name."""
        return getattr(self._model, name)


def measure(reference: Any, model: Any, rows: Sequence[TokenRow], max_length: int | None) -> Divergence:
    """Return how far `model` is from `reference` on the tokens that carry loss, without autocast, as both are served.

    The logits of both are held for `BATCH_LOGIT_BYTES` at a time, in float32; of a row that takes more, the first
    tokens are compared.

    Args:
        reference: a causal language model.
        model: another with the same vocabulary; on the same device, or another.
        rows: at least one token of them carries loss.
        max_length: tokens of a row beyond this are left out; None for all.
    """
    vocabulary = reference.get_output_embeddings().weight.shape[0] if reference.get_output_embeddings() else None
    vocabulary = vocabulary or reference.config.get_text_config().vocab_size
    limit = max(1, BATCH_LOGIT_BYTES // (8 * vocabulary))
    total, largest, same, count = 0.0, 0.0, 0, 0
    with inference(reference), inference(model):
        for _, ids, labels, mask in padded_batches(_first(rows), max_length, limit):
            carries = labels[:, 1:] != IGNORED
            positions = carries.any(0).nonzero().flatten()[:limit]
            chosen = carries[:, positions]
            pair = [_logits(one, ids, mask, positions, chosen) for one in (reference, model)]
            for expected, found in zip(*(logits.split(_chunk(vocabulary)) for logits in pair), strict=True):
                wanted = expected.float().log_softmax(-1)
                each = (wanted.exp() * (wanted - found.to(expected.device).float().log_softmax(-1))).sum(-1)
                total += float(each.double().sum())
                largest = max(largest, float(each.max()))
                same += int((expected.argmax(-1) == found.to(expected.device).argmax(-1)).sum())
                count += len(each)
    # Rounding can leave a mean just below zero, which no divergence is.
    return Divergence(max(total / max(count, 1), 0.0), largest, count, same / max(count, 1))


def _first(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Return the rows up to the one with which so many tokens are reached."""
    kept, count = list[TokenRow](), 0
    for row in rows:
        if count >= MAX_TOKENS:
            break
        kept.append(row)
        count += sum(label != IGNORED for label in row.labels[1:])
    return kept


def _chunk(vocabulary: int) -> int:
    return max(1, _CHUNK_BYTES // (4 * vocabulary))


def _logits(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """Return the logits of shape (tokens, vocabulary) at the positions where a row's own label carries loss."""
    device = model.device
    # Counted from the end: soft prompts add positions at the start.
    kept = (positions - ids.shape[1]).to(device)
    logits = model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, logits_to_keep=kept
    ).logits
    return logits[chosen.to(logits.device)]

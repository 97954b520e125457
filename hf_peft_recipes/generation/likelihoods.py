"""The loss of rows, each by itself: padded batches, the longest rows first, logits only where there are targets."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hf_peft_recipes.data.rendering import IGNORED, TokenRow
from hf_peft_recipes.generation.greedy import inference

BATCH_LOGIT_BYTES = 512 * 2**20
"""What the logits of one batch may take, in float32."""
BATCH_TOKENS = 16_384
"""Tokens of a batch at the most, where a small vocabulary would let in more: hidden states take memory too."""


def token_losses(model: Any, rows: Sequence[TokenRow], max_length: int | None) -> list[tuple[float, int]]:
    """Return the summed loss in nats and the number of tokens that carry it, of every row.

    Args:
        model: a causal language model.
        rows: of tokens.
        max_length: tokens of a row beyond this are not scored; None for all.
    """
    losses: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    with inference(model):
        for batch, ids, labels, mask in padded_batches(rows, max_length, batch_tokens(model)):
            for index, loss in zip(batch, _batch_losses(model, ids, labels, mask), strict=True):
                losses[index] = loss
    return losses


def batch_tokens(model: Any) -> int:
    """Return how many tokens are scored at a time, padding included."""
    return min(BATCH_TOKENS, BATCH_LOGIT_BYTES // (4 * int(model.config.get_text_config().vocab_size)))


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


def _batch_losses(model: Any, ids: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> list[tuple[float, int]]:
    targets = labels[:, 1:]
    # Logits are made only where some row has a target: prompts are long and vocabularies are large.
    positions = (targets != IGNORED).any(0).nonzero().flatten()
    if len(positions) == 0:
        return [(0.0, 0)] * len(ids)
    device = model.device
    # Counted from the end: soft prompts add positions at the start.
    kept = (positions - ids.shape[1]).to(device)
    logits = model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, logits_to_keep=kept
    ).logits
    wanted = targets[:, positions].to(device)
    # Rows of logits end to end: with the vocabulary in the middle cross entropy would make a copy of all of them first.
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return list(zip(loss.view(wanted.shape).sum(1).tolist(), (wanted != IGNORED).sum(1).tolist(), strict=True))

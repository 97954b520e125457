"""Which documents a packed row consists of, read from what makes the mask, without the mask.

Transformers describes a mask by a function of row, head, query and key, and writes it out as tokens × tokens. Who
attends a document at a time needs the bounds of the documents alone. They are found by asking that function about each
token and the one before it; then it is asked about enough other pairs to know that it says nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from hf_peft_recipes.speed.attention.layout import Layout, lay_out


@dataclass(eq=False)
class Documents:
    """The documents of a batch's rows, one row after the other."""

    lengths: list[int]
    """In tokens."""
    _layout: Layout | None = field(default=None, repr=False)

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(self.lengths)

    def layout(self, device: torch.device) -> Layout:
        """Return how they are laid out for SDPA, made once for all layers."""
        if self._layout is None:
            self._layout = lay_out(self.lengths, device)
        return self._layout


# Every layer is given the same bounds, and what is known of them beside the tensor would be lost on the way.
_by_bounds: Any = WeakIdKeyDictionary()


def write_bounds(lengths: list[int], device: torch.device | str) -> torch.Tensor:
    """Return the bounds of documents as they go to the layers in a mask's place: where each begins, and the end.

    Of shape (documents + 1,), as whole numbers of 32 bits, which is what kernels take.

    Args:
        lengths: of the documents of all rows, in tokens.
        device: of the rows.
    """
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
    _by_bounds[bounds] = Documents(lengths)
    return bounds


def documents_of(mask: torch.Tensor | None) -> Documents | None:
    """Return the documents that are given in a mask's place; None where it is a mask, or nothing."""
    if mask is None or mask.ndim != 1 or mask.dtype != torch.int32:
        return None
    if mask not in _by_bounds:
        # A copy, as where a model is spread over devices.
        _by_bounds[mask] = Documents(mask.diff().tolist())
    documents: Documents = _by_bounds[mask]
    return documents


def write_mask(bounds: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the mask that the bounds stand for, boolean, of shape (rows, 1, tokens, tokens)."""
    tokens = int(bounds[-1]) // rows
    places = torch.arange(rows * tokens, device=bounds.device, dtype=bounds.dtype)
    document = torch.bucketize(places, bounds, right=True).view(rows, 1, tokens)
    same = document[..., :, None] == document[..., None, :]
    return same & same.new_ones(tokens, tokens).tril()


def read_lengths(sees: Callable[..., torch.Tensor], rows: int, tokens: int, device: Any) -> list[int] | None:
    """Return the lengths in tokens of all rows' documents; None unless each document is plainly causal.

    Pairs of tokens at distances 1, 2, 4 … are asked about, both ways, and each token with the first of its document:
    windows, blocks that see both ways, and keys that are left out show in one of these. The GPU is waited for once.

    Args:
        sees: `mask_function` of transformers' masks: whether a query sees a key, by tensors of rows, heads, queries
            and keys that broadcast.
        rows: of the batch.
        tokens: of a row.
        device: of the batch.
    """
    row = torch.arange(rows, device=device)[:, None, None]
    head = torch.zeros((), dtype=torch.long, device=device)
    at = torch.arange(tokens, device=device)
    distances = 2 ** torch.arange(max(1, (tokens - 1).bit_length()), device=device)[:, None]
    earlier, there = (at - distances).clamp(min=0), at >= distances

    def ask(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        # Not every function looks at all that it is given.
        seen = sees(row, head, query, key)
        return seen.broadcast_to(torch.broadcast_shapes(seen.shape, row.shape, query.shape, key.shape))

    before = ask(at, earlier)
    begins = ~(before[:, 0] & there[0])
    document = begins.cumsum(-1)
    first = torch.where(begins, at, 0).cummax(-1).values[:, None]
    as_documents = before == (document[:, None] == document[:, earlier])
    causal = ~ask(earlier, at)
    plain = ((as_documents & causal) | ~there).all() & ask(at, first).all() & ask(at, at[None]).all()
    told = torch.cat([begins.flatten(), plain[None]]).cpu()
    if not told[-1]:
        return None
    starts = told[:-1].nonzero()[:, 0].tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], rows * tokens], strict=True)]

"""The rows that a run is judged by, as a plan has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeldOut:
    """The rows that a run is judged by, in tokens."""

    scored: tuple[tuple[int, int], ...]
    """Of every row, its length and where its first token with loss stands: no logits are made before."""
    prompts: tuple[int, ...]
    """Lengths of the prompts that are answered; empty where nothing is generated."""
    answer: int
    """Tokens that an answer may have."""
    watched: tuple[int, int]
    """Rows that the Trainer watches, packed as in training, and the length of the longest."""

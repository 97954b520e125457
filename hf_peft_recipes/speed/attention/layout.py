"""How packed documents are laid out for kernels that want them beside one another, and back.

Documents of about the same length go together, with a little space after the shorter ones: a causal query never sees
what comes after it. On two cores, eight documents of 128 tokens took 3.5 times as long on the way back one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch

from hf_peft_recipes.speed.attention.places import Places

STEP = 32
"""Documents whose lengths come to the same multiple of it, in tokens, go together; those of one token by themselves."""


@dataclass(eq=False)
class Layout:
    """The places of a batch's tokens."""

    groups: list[tuple[int, int]]
    """How many documents go together each time, and the tokens that each has room for."""
    take: torch.Tensor
    """The token that each place is filled with; any where it is left empty."""
    give: torch.Tensor
    """The place of each token."""
    empty: torch.Tensor
    """The places that are left empty."""
    _places: dict[tuple[int, int], Places] = field(default_factory=dict, repr=False)

    @property
    def is_plain(self) -> bool:
        """Whether it is one document, with nothing after it."""
        return len(self.groups) == self.groups[0][0] == 1 and len(self.take) == len(self.give)

    def places(self, heads: int, key_heads: int) -> Places:
        """Return the places of all heads, made once for all layers.

        Args:
            heads: of queries.
            key_heads: heads of keys.
        """
        if (heads, key_heads) not in self._places:
            self._places[heads, key_heads] = Places(
                self.groups, self.take, self.empty, len(self.give), heads, key_heads
            )
        return self._places[heads, key_heads]

    def to(self, device: str) -> Layout:
        """Return the layout, and the places made so far, on another device."""
        places = {heads: one.to(device) for heads, one in self._places.items()}
        return Layout(self.groups, self.take.to(device), self.give.to(device), self.empty.to(device), places)


def lay_out(lengths: list[int], device: torch.device) -> Layout:
    """Return the layout of a batch.

    Args:
        lengths: of its documents, in tokens.
        device: on which the batch is.
    """
    starts = [0, *accumulate(lengths)]
    order = sorted(range(len(lengths)), key=lambda document: _room(lengths[document]))
    groups = [(len(list(some)), room) for room, some in groupby(_room(lengths[document]) for document in order)]
    take: list[int] = []
    give, empty, place = [0] * starts[-1], list[int](), 0
    for document in order:
        length, start, room = lengths[document], starts[document], _room(lengths[document])
        give[start : start + length] = range(place, place + length)
        empty += range(place + length, place + room)
        take += [*range(start, start + length), *[start] * (room - length)]
        place += room
    return Layout(groups, *(torch.tensor(one, dtype=torch.long, device=device) for one in (take, give, empty)))


def _room(length: int) -> int:
    # What fills a row up to a fixed length is many documents of one token.
    return length if length == 1 else -(-length // STEP) * STEP

"""Where each row of each head goes, so that every block of attention's way back lies in memory as its products want it.

Queries lie by group of documents of about one length, by block, by document, by head of keys, by head of queries that
shares it, by token; keys and values by group, document, head and token. So a block of either is a view.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from hf_peft_recipes.speed import ATTENTION_BLOCK as BLOCK
from hf_peft_recipes.speed import ATTENTION_SCORES as SCORES


class Block(NamedTuple):
    """Some queries of all documents of a group, or of some of its heads."""

    queries: slice
    """Their places."""
    keys: slice
    """Those of all keys of these heads."""
    heads: int
    """Documents × heads of keys."""
    start: int
    """Tokens of a document before them."""
    end: int
    """Tokens of a document up to the last of them."""
    later: torch.Tensor
    """Of shape (queries, queries): which of these tokens come later than each."""
    is_first: bool
    """Whether it is the first of its heads to come."""


class Places:
    """The places of a batch's rows."""

    def __init__(
        self, groups: Sequence[tuple[int, int]], take: torch.Tensor, empty: torch.Tensor, tokens: int, heads: int,
        key_heads: int,
    ) -> None:  # fmt: skip
        """Work out the places.

        Args:
            groups: documents and the room in tokens of each, of every group.
            take: the token that each place of the layout is filled with.
            empty: the places of the layout that are left empty.
            tokens: of the batch.
            heads: of queries.
            key_heads: heads of keys.
        """
        self._groups, self._heads, self._key_heads = groups, heads, key_heads
        filled = torch.ones(len(take), dtype=torch.bool).index_fill_(0, empty, False)
        # The row of head h of token t is t · heads + h.
        shared = torch.arange(heads).view(key_heads, -1, 1)
        alone = torch.arange(key_heads)[:, None]
        queries, is_query, keys, is_key = [], [], [], []
        place = 0
        for number, room in groups:
            here = slice(place, place + number * room)
            token, full = take[here].view(number, 1, 1, room), filled[here].view(number, 1, 1, room)
            for start in _starts(room):
                some = slice(start, start + BLOCK)
                rows = token[..., some] * heads + shared
                queries.append(rows.flatten())
                is_query.append(full[..., some].expand_as(rows).flatten())
            rows = token[:, 0] * key_heads + alone
            keys.append(rows.flatten())
            is_key.append(full[:, 0].expand_as(rows).flatten())
            place += number * room
        self._take_queries, self._take_keys = torch.cat(queries), torch.cat(keys)
        self._empty = (~torch.cat(is_query)).nonzero()[:, 0]
        self._give_queries = _give(self._take_queries, torch.cat(is_query), tokens * heads)
        self._give_keys = _give(self._take_keys, torch.cat(is_key), tokens * key_heads)
        self._later = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu_(1)

    def to(self, device: str) -> Places:
        """Return the same places on another device."""
        moved = copy.copy(self)
        vars(moved).update({name: one.to(device) for name, one in vars(self).items() if isinstance(one, torch.Tensor)})
        return moved

    def lay_queries(self, rows: torch.Tensor) -> torch.Tensor:
        """Return tokens × heads × width as places × width, zero where a place is empty."""
        return rows.flatten(0, 1).index_select(0, self._take_queries).index_fill_(0, self._empty, 0)

    def lay_keys(self, rows: torch.Tensor) -> torch.Tensor:
        """Return tokens × key heads × width as places × width."""
        return rows.flatten(0, 1).index_select(0, self._take_keys)

    def gather_queries(self, places: torch.Tensor) -> torch.Tensor:
        """Return places × width as (tokens · heads) × width."""
        return places.index_select(0, self._give_queries)

    def gather_keys(self, places: torch.Tensor) -> torch.Tensor:
        """Return places × width as (tokens · key heads) × width."""
        return places.index_select(0, self._give_keys)

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks, of the last queries of a document first."""
        shared = self._heads // self._key_heads
        query, key = 0, 0
        for number, room in self._groups:
            every = number * self._key_heads
            together = max(1, min(every, SCORES // (shared * min(BLOCK, room) * room)))
            for start in _starts(room):
                end = min(start + BLOCK, room)
                rows = shared * (end - start)
                for head in range(0, every, together):
                    heads = min(together, every - head)
                    yield Block(
                        slice(query + head * rows, query + (head + heads) * rows),
                        slice(key + head * room, key + (head + heads) * room),
                        heads, start, end, self._later[: end - start, : end - start], end == room,
                    )  # fmt: skip
                query += every * rows
            key += every * room


def _starts(room: int) -> range:
    return range((room - 1) // BLOCK * BLOCK, -1, -BLOCK)


def _give(take: torch.Tensor, filled: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the place of each row."""
    places = filled.nonzero()[:, 0]
    return torch.empty(rows, dtype=torch.long).index_copy_(0, take[places], places)

"""Which training rows a micro-batch is made of, found by their tokens: packing and samplers keep no numbers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

_IDS = ("input_ids", "prompt_ids")
_MADE = ("KL_", "decoder_")
"""Beginnings of the names of what collators put together from several rows, or from answers."""
_AT_ONCE = 10_000

Document = tuple[int, ...]


def documents(batch: Mapping[str, Any]) -> list[Document]:
    """Return the token sequences of a micro-batch, without padding; of packed rows every document.

    Args:
        batch: `input_ids` of shape (rows, tokens), or several such with a prefix; with `position_ids` that begin again
            at every document, or an attention mask.
    """
    found: list[Document] = []
    for name, ids in batch.items():
        if name.endswith(_IDS) and not name.startswith(_MADE) and isinstance(ids, torch.Tensor):
            found += _documents(ids, batch.get("position_ids"), batch.get(_mask_of(name)))
    return found


def _mask_of(name: str) -> str:
    return name.replace("prompt_ids", "prompt_mask").replace("input_ids", "attention_mask")


def _documents(ids: torch.Tensor, positions: Any, mask: Any) -> Iterator[Document]:
    for number, row in enumerate(ids):
        tokens = row.tolist()
        if positions is not None and positions.shape == ids.shape:
            starts = [at for at, position in enumerate(positions[number].tolist()) if position == 0]
            ends = [*starts[1:], len(tokens)]
            yield from (tuple(tokens[start:end]) for start, end in zip(starts, ends, strict=True))
        elif mask is not None:
            kept = mask[number].tolist()
            yield tuple(token for token, is_kept in zip(tokens, kept, strict=True) if is_kept)
        else:
            yield tuple(tokens)


def find_rows(wanted: Sequence[Document], table: Any) -> list[int] | None:
    """Return the numbers of the training rows that hold these token sequences, counted from 0, in order.

    Args:
        wanted: as `documents` returns them.
        table: the token rows, a `datasets.Dataset`; None is returned for a stream, whose rows have no numbers.
    """
    names = [name for name in getattr(table, "column_names", None) or [] if name.endswith(_IDS)]
    if not hasattr(table, "__len__") or not names:
        return None
    sought, lengths, found = set(wanted), {len(one) for one in wanted}, set[int]()
    columns = table.select_columns(names).with_format("arrow")
    for start in range(0, len(table), _AT_ONCE):
        part = columns[start : start + _AT_ONCE]
        for name in names:
            column = part[name].combine_chunks()
            for at, row in enumerate(column):
                # Numbers are read from Arrow where the length tells that they might be the ones.
                if len(row) in lengths and tuple(row.as_py()) in sought:
                    found.add(start + at)
    return sorted(found)

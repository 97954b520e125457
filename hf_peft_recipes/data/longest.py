"""The rows that ask most of memory: the longest ones, and of those the ones with most to learn from."""

from itertools import islice
from typing import Any

import numpy as np

from hf_peft_recipes.data.rendering import IGNORED

_READ = 10_000
"""Rows that are looked at together."""


def longest_rows(dataset: Any, number: int) -> Any:
    """Return the longest token rows, so many, the longest first; of a stream the first ones, as nothing else is known.

    Args:
        dataset: a `datasets.Dataset` with `input_ids`, and `labels` where some tokens carry no loss.
        number: rows wanted; rows are taken again where there are fewer.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        return Dataset.from_list(list(islice(iter(dataset), number)))
    names = [name for name in ("input_ids", "labels") if name in dataset.column_names]
    lengths, supervised = [], []
    for table in dataset.select_columns(names).with_format("arrow").iter(batch_size=_READ):
        sizes = table["input_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
        lengths.append(sizes)
        supervised.append(_supervised(table["labels"].combine_chunks(), sizes) if "labels" in names else sizes)
    # lexsort takes its last key first.
    order = np.lexsort((-np.concatenate(supervised), -np.concatenate(lengths)))[:number]
    return dataset.select([int(order[at % len(order)]) for at in range(number)])


def _supervised(labels: Any, sizes: Any) -> Any:
    """Return how many labels of each row carry loss."""
    flat = labels.flatten().to_numpy(zero_copy_only=False) != IGNORED
    ends = np.cumsum(sizes)
    counted = np.concatenate([[0], np.cumsum(flat)])
    return counted[ends] - counted[ends - sizes]

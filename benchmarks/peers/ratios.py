"""What turns come to: ratios within a turn, then their median and spread."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FIGURES = ("tokens_per_second", "supervised_tokens_per_second", "peak_memory_bytes", "first_step_seconds")


def ratios(turns: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return, for every peer and figure, the median, lowest and highest ratio of the first contender's to the peer's.

    Args:
        turns: contender to record; one that did not run in a turn is left out of it.
    """
    reference = next(iter(turns[0]))
    peers = dict.fromkeys(name for turn in turns for name in turn if name != reference)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for peer in peers:
        both = [(turn[reference], turn[peer]) for turn in turns if peer in turn and reference in turn]
        table[peer] = {}
        for figure in FIGURES:
            found = [ours[figure] / theirs[figure] for ours, theirs in both if ours[figure] and theirs.get(figure)]
            if found:
                table[peer][figure] = spread(found)
    return table


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}

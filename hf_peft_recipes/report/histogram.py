"""The lengths of rows as a picture that stands inside a page."""

from collections.abc import Mapping
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 480, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 30, 32, 52
_X_LABELS = 6
"""How many edges are written at most, so that they do not touch."""


def length_histogram(ledger: Mapping[str, Any]) -> str:
    """Return an SVG figure of the rows by their length in tokens; nothing where there is nothing to draw.

    Args:
        ledger: `lengths_histogram` with `edges` (one more than counts) and `counts`, and `max_length`, if any.
    """
    histogram = ledger.get("lengths_histogram") or {}
    edges, counts = histogram.get("edges") or [], histogram.get("counts") or []
    if not counts or len(edges) != len(counts) + 1 or max(counts) <= 0:
        return ""
    highest, rows = max(counts), sum(counts)
    bottom, step = _HEIGHT - _BOTTOM, (_WIDTH - _LEFT - _RIGHT) / len(counts)
    tall = (bottom - _TOP) / highest
    words = f"{rows:,} rows by length, from {edges[0]:,} to {edges[-1]:,} tokens"
    bars = [
        f'<rect class="bar" x="{_LEFT + place * step + 0.5:.2f}" y="{bottom - count * tall:.2f}"'
        f' width="{max(step - 1, 0.5):.2f}" height="{count * tall:.2f}">'
        f"<title>{edges[place]:,} to {edges[place + 1]:,} tokens: {count:,} rows</title></rect>"
        for place, count in enumerate(counts)
        if count
    ]
    every = -(-len(edges) // _X_LABELS)
    x_axis = [
        f'<text x="{_LEFT + place * step:.2f}" y="{bottom + 18}" text-anchor="middle">{edges[place]:,}</text>'
        for place in range(0, len(edges), every)
    ]
    # Half of an odd number of rows is no number of rows.
    ticks = [0, highest // 2, highest] if highest > 1 else [0, highest]
    y_axis = [
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom - tick * tall:.2f}"'
        f' y2="{bottom - tick * tall:.2f}"/>'
        f'<text x="{_LEFT - 6}" y="{bottom - tick * tall + 4:.2f}" text-anchor="end">{tick:,}</text>'
        for tick in ticks
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    names = (
        f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">tokens a row</text>'
        f'<text x="{_LEFT - 6}" y="15" text-anchor="end">rows</text>'
    )
    inside = "".join([*y_axis, *bars, *x_axis, names, _limit(ledger.get("max_length"), edges, step, bottom)])
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(words)}">{inside}</svg></figure>'
    )


def _limit(max_length: Any, edges: list[float], step: float, bottom: int) -> str:
    """Return a line at `max_length`, where it falls among the edges."""
    if max_length is None or not edges[0] <= max_length <= edges[-1]:
        return ""
    place = next(place for place, edge in enumerate(edges[1:]) if max_length <= edge)
    x = _LEFT + step * (place + (max_length - edges[place]) / (edges[place + 1] - edges[place]))
    anchor, away = ("end", -5) if x > _WIDTH / 2 else ("start", 5)
    return (
        f'<line class="limit" x1="{x:.2f}" x2="{x:.2f}" y1="{_TOP - 14}" y2="{bottom}"/>'
        f'<text class="limit-word" x="{x + away:.2f}" y="{_TOP - 6}" text-anchor="{anchor}">'
        f"max_length {max_length:,}</text>"
    )

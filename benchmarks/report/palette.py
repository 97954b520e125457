"""Colours that colour-blind people tell apart, and axes that look alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Okabe and Ito 2008, Color Universal Design.
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442",
)  # fmt: skip
GREY, BLACK = "#BBBBBB", "#222222"
_IN_ORDER = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW)


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name, in the order in which they come; more than seven begin anew."""
    return {name: _IN_ORDER[at % len(_IN_ORDER)] for at, name in enumerate(dict.fromkeys(names))}


def plain(axes: Any, along: str) -> None:
    """Leave of the axes what is needed: a light grid along one of them, no box.

    Args:
        axes: of matplotlib.
        along: `x`, `y` or `both`: whose values are read off.
    """
    axes.grid(axis=along, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)

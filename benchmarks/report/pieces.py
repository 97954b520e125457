"""What a result file becomes: a table, a plot, a block of the README, each of a known provenance."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.provenance import Provenance

WIDTH = 120
MIB = 2**20
NOTHING = "-"
_FIGURE = re.compile(r"[-+]?\d|-$")


@dataclass(frozen=True)
class Table:
    """Figures in rows, with where they come from."""

    provenance: Provenance
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown; columns of figures stand at the right."""
        columns = zip(*self.rows, strict=True) if self.rows else [[""] for _ in self.headings]
        marks = ["---:" if all(_FIGURE.match(text) for text in column) else ":---" for column in columns]
        cells = [self.headings, marks, *self.rows]
        return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in cells)


@dataclass(frozen=True)
class Plot:
    """A picture of figures, with where they come from below it."""

    provenance: Provenance
    file: str
    """Name of its file."""
    alt: str
    """What is seen, for who cannot."""
    size: tuple[float, float]
    """Width and height in inches."""
    draw: Callable[[Any], None]
    """Draws into a matplotlib figure."""

    def write(self, folder: Path) -> None:
        """Write the PNG: the same bytes for the same figures.

        Args:
            folder: that gets the file.
        """
        # Not pyplot: it keeps global state and looks for a display.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        self.draw(figure)
        told = textwrap.fill(self.provenance.phrase(), round(self.size[0] * 17))
        figure.supxlabel(told, fontsize=7, color="#666666", x=0.01, ha="left")
        figure.savefig(folder / self.file, metadata={"Software": None})


@dataclass(frozen=True)
class Block:
    """What stands between two marks of the README."""

    provenance: Provenance
    text: str
    """A sentence or two."""
    table: Table | None = None

    def markdown(self) -> str:
        """Return it, with its provenance at the end."""
        measured = f"Measured on {self.provenance.phrase()}."
        if self.table is None:
            return wrap(f"{self.text} {measured}")
        return "\n\n".join([wrap(self.text), self.table.markdown(), wrap(measured)])


@dataclass(frozen=True)
class Section:
    """Everything that a result file becomes."""

    title: str
    text: str
    """What the table comes to."""
    table: Table
    plot: Plot | None
    block: Block

    def markdown(self) -> str:
        """Return the section of the report: provenance, table, what it comes to, plot."""
        told = wrap(f"Measured on {self.table.provenance.phrase()}.")
        plot = f"![{self.plot.alt}]({self.plot.file})" if self.plot else ""
        parts = [f"## {self.title}", told, self.text, self.table.markdown(), plot]
        return "\n\n".join(part for part in parts if part) + "\n"


def wrap(text: str) -> str:
    """Return a paragraph in lines of the house's width."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def mib(size: float | None) -> str:
    """Return bytes in MiB."""
    return NOTHING if size is None else f"{size / MIB:,.0f}"


def share(value: float | None) -> str:
    """Return a share in per cent."""
    return NOTHING if value is None else f"{value:.1%}".replace("%", " %")


def off(value: float) -> str:
    """Return by how much something is off, in per cent."""
    return f"{value:+.1%}".replace("%", " %")


def number(value: float | None, digits: int = 0) -> str:
    """Return a figure with so many digits behind the point."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def spread(low: float, high: float, shown: Callable[[float], str]) -> str:
    """Return a range, as one figure where both ends read alike."""
    first, last = shown(low), shown(high)
    if first == last:
        return first
    # A dash before a sign reads as another sign.
    return f"{first} to {last}" if first[0] in "+-" else f"{first.removesuffix(' %')}–{last}"

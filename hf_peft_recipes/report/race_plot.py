"""`race.png`: the quality of each recipe of a race against its memory, and against its time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_peft_recipes.metric_facts import SHARES

GIB = 2**30
_FRONT, _BEHIND = "#cc3311", "#777777"
_AXES = (("peak_memory_bytes", "peak memory (GiB)", GIB), ("train_seconds", "training (s)", 1))
_ABOVE, _BELOW = (6, 6), (6, -12)
"""Where the names stand beside their points, in points, in turn along the axis so that neighbours part."""


def plot_race(standings: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a race as a PNG: dots with what their seeds span, full where no other recipe beats them.

    Args:
        standings: as `bench.race.stand` returns them; at least one recipe has a quality.
        path: the file to write.
    """
    # Not pyplot: it keeps global state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in standings["recipes"] if row["quality"]]
    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, label, unit) in zip(figure.subplots(1, 2, sharey=True), _AXES, strict=True):
        _plot(axes, rows, key, unit)
        axes.set_xlabel(label)
    first = figure.axes[0]
    metric = str(standings["metric"])
    better = "lower" if standings["lower_is_better"] else "higher"
    first.set_ylabel(f"{metric.replace('_', ' ')} ({better} is better)")
    if metric in SHARES:
        from matplotlib.ticker import PercentFormatter

        first.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    budget = standings["budget"]
    equal = f"{budget['seconds']:,.0f} s of training" if budget["seconds"] else f"{budget['tokens']:,} tokens"
    figure.suptitle(f"{equal} each; full dots: none beats them", fontsize="medium")
    figure.savefig(path)


def _plot(axes: Any, rows: Sequence[Mapping[str, Any]], key: str, unit: int) -> None:
    for at, row in enumerate(sorted(rows, key=lambda row: row[key]["mean"])):
        place, quality = row[key]["mean"] / unit, row["quality"]
        colour = _FRONT if row["pareto"] else _BEHIND
        axes.errorbar(
            [place], [quality["mean"]], xerr=_span(row[key], unit), yerr=_span(quality, 1), fmt="o",
            markersize=7, color=colour, markerfacecolor=colour if row["pareto"] else "white", elinewidth=1, capsize=3,
        )  # fmt: skip
        axes.annotate(
            row["recipe"], (place, quality["mean"]), xytext=_BELOW if at % 2 else _ABOVE, textcoords="offset points",
            fontsize="small", color=colour,
        )  # fmt: skip
    axes.margins(0.18)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _span(spread: Mapping[str, float], unit: int) -> list[list[float]]:
    """Return how far the lowest and the highest are from the mean, as error bars have it."""
    return [[(spread["mean"] - spread["lowest"]) / unit], [(spread["highest"] - spread["mean"]) / unit]]

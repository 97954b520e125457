"""`trials.png`: the metric of a sweep over its trials, and over each field that was searched."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_DONE, _BEST, _PRUNED = "#4477aa", "#cc3311", "#999999"
_COLUMNS = 3


def plot_trials(summary: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a sweep as a PNG.

    Args:
        summary: as it stands in `trials.json`; at least one of its trials has a value.
        path: the file to write.
    """
    # Not pyplot, which Optuna's own plots draw with: it keeps global state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = list(summary["trials"][0]["params"])
    panels = 1 + len(keys)
    columns = min(_COLUMNS, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for spare in grid[panels:]:
        spare.set_visible(False)
    _plot_history(grid[0], summary)
    for axes, key in zip(grid[1:], keys, strict=False):
        _plot_field(axes, summary, key)
    for axes in grid[:panels]:
        axes.set_ylabel(summary["metric"].replace("_", " "))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{summary['recipe']}: {_described(summary)}", fontsize="medium")
    figure.savefig(path)


def _plot_history(axes: Any, summary: Mapping[str, Any]) -> None:
    """Draw the metric over the trials, and the best one so far."""
    from matplotlib.ticker import MaxNLocator

    done = _with_value(summary)
    better = min if summary["direction"] == "minimize" else max
    numbers = [trial["number"] for trial in done]
    values = [trial["value"] for trial in done]
    so_far = [better(values[: at + 1]) for at in range(len(values))]
    axes.step(numbers, so_far, where="post", color=_BEST, linewidth=1.2, label="best so far")
    _scatter(axes, summary, [(trial["number"], trial) for trial in summary["trials"]])
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize="small")


def _plot_field(axes: Any, summary: Mapping[str, Any], key: str) -> None:
    """Draw the metric over the values of one field: a number by its size, a choice in its place."""
    values = [trial["params"][key] for trial in summary["trials"]]
    if any(isinstance(value, str) for value in values):
        words = _in_order({str(value) for value in values})
        axes.set_xticks(range(len(words)), words)
        axes.set_xlim(-0.5, len(words) - 0.5)
        places = [words.index(str(value)) for value in values]
    else:
        places = values
        if key in summary["logarithmic"]:
            axes.set_xscale("log")
    _scatter(axes, summary, list(zip(places, summary["trials"], strict=True)))
    share = summary["importances"].get(key)
    axes.set_xlabel(key if share is None else f"{key} (decided {share:.0%})")


def _scatter(axes: Any, summary: Mapping[str, Any], placed: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
    """Draw trials with a value as dots, the best one apart, and where the others stood as marks on the axis."""
    done = [(place, trial) for place, trial in placed if trial["value"] is not None]
    other = [place for place, trial in placed if trial["value"] is None and trial["status"] != "cut off"]
    best = [(place, trial) for place, trial in done if trial["number"] == summary["best"]]
    axes.scatter(
        [place for place, _ in done], [trial["value"] for _, trial in done], s=26, color=_DONE, alpha=0.85, zorder=3
    )
    for place, trial in best:
        axes.scatter([place], [trial["value"]], s=90, marker="*", color=_BEST, zorder=4)
    if other:
        axes.scatter(
            other, [0.02] * len(other), s=24, marker="x", color=_PRUNED, transform=axes.get_xaxis_transform(), zorder=3,
            label="pruned or failed",
        )  # fmt: skip


def _with_value(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [trial for trial in summary["trials"] if trial["value"] is not None]


def _in_order(words: set[str]) -> list[str]:
    """Return words by their size where they are numbers, else by the alphabet."""
    try:
        return sorted(words, key=float)
    except ValueError:
        return sorted(words)


def _described(summary: Mapping[str, Any]) -> str:
    best = next(trial for trial in summary["trials"] if trial["number"] == summary["best"])
    values = ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in best["params"].items()
    )
    return f"trial {best['number']} is the best of {len(summary['trials'])} ({values})"

"""`rounds.png`: the held-out metric from round to round, and what answers were drawn and accepted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_peft_recipes.metric_facts import SHARES

_KEPT, _BACK, _REFINED, _OTHER = "#0077bb", "#cc3311", "#33bbee", "#bbbbbb"


def plot_rounds(feedback: Mapping[str, Any], path: Path, title: str) -> None:
    """Write the picture of a run in rounds as a PNG.

    Args:
        feedback: the account of the rounds, as `result.json` has it.
        path: the file to write.
        title: the recipe's name.
    """
    # Not pyplot: it keeps global state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    metric = feedback["metric"] or "loss"
    accounts = [feedback["start"], *feedback["rounds"]]
    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    measured = [account for account in accounts if metric in account.get("metrics", {})]
    _plot_metric(left, measured, metric)
    left.set(xlabel="round", ylabel=metric.replace("_", " "))
    if metric in SHARES:
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _plot_answers(right, feedback["rounds"])
    right.set(xlabel="round", ylabel="answers")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    figure.suptitle(f"{title}: feedback by {feedback['source']['name']}", fontsize="medium")
    figure.savefig(path)


def _plot_metric(axes: Any, accounts: list[Mapping[str, Any]], metric: str) -> None:
    kept = [account for account in accounts if account["kept"]]
    axes.plot([each["round"] for each in kept], [each["metrics"][metric] for each in kept], "-", color=_KEPT)
    for label, colour, some in (("kept", _KEPT, kept), ("rolled back", _BACK, [a for a in accounts if not a["kept"]])):
        if not some:
            continue
        values = [each["metrics"][metric] for each in some]
        spans = [
            [value - each["intervals"][metric][0] for value, each in zip(values, some, strict=True)],
            [each["intervals"][metric][1] - value for value, each in zip(values, some, strict=True)],
        ]
        axes.errorbar(
            [each["round"] for each in some], values, yerr=[[max(0.0, span) for span in side] for side in spans],
            fmt="o", color=colour, elinewidth=1, capsize=3, label=label,
        )  # fmt: skip


def _plot_answers(axes: Any, rounds: list[Mapping[str, Any]]) -> None:
    at_once = [account["accepted"] for account in rounds]
    refined = [account["refinements_accepted"] for account in rounds]
    drawn = [account["samples"] + account["refinements"] for account in rounds]
    neither = [all_of - one - other for all_of, one, other in zip(drawn, at_once, refined, strict=True)]
    numbers, floor = [account["round"] for account in rounds], [0] * len(rounds)
    parts = (
        ("accepted at once", _KEPT, at_once),
        ("refined and accepted", _REFINED, refined),
        ("neither", _OTHER, neither),
    )
    for label, colour, heights in parts:
        axes.bar(numbers, heights, bottom=floor, color=colour, width=0.6, label=label)
        floor = [low + high for low, high in zip(floor, heights, strict=True)]

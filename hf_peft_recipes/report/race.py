"""Where the recipes of a race stand, as a person reads it."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.metric_facts import SHARES

GIB = 2**30


def race_line(line: Mapping[str, Any], fresh: bool) -> str:
    """Return one line for a run that is done.

    Args:
        line: of `race.jsonl`.
        fresh: whether it was run now.
    """
    told = f"{line['name']}: {line['status']}"
    if line["status"] == "done":
        scores = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in line["metrics"]["after"].items())
        spent = line["budget"]
        told += f", {scores}; {spent['spent_tokens']:,} tokens in {spent['spent_seconds']:.1f} s"
    elif line.get("error"):
        told += f" ({line['error']})"
    return told if fresh else f"{told} (run before)"


def race_table(standings: Mapping[str, Any]) -> Any:
    """Return a rich table: a row a recipe, the best quality first; a star where no other is better in everything.

    Args:
        standings: as `bench.race.stand` returns them.
    """
    from rich.table import Table

    budget, metric = standings["budget"], str(standings["metric"])
    timed = budget["seconds"] is not None
    equal = f"{budget['seconds']:,.0f} s of training" if timed else f"{budget['tokens']:,} tokens"
    compared = "quality and memory" if timed else "quality, memory and time"
    further = [name for name in ("loss",) if name != metric]
    table = Table(
        title=f"{equal} each", caption=f"mean (lowest – highest) over seeds; *: none beats it in {compared}",
        title_justify="left", caption_justify="left",
    )  # fmt: skip
    for heading in ("", "recipe", metric.replace("_", " "), *further, "GiB", "s", "tokens", "trainable", "runs", ""):
        table.add_column(heading, justify="left" if heading in ("", "recipe") else "right", overflow="fold")
    for row in ranked(standings):
        if row["quality"] is None:
            blank = ["-"] * (5 + len(further))
            table.add_row("", row["recipe"], *blank, str(row["runs"]), "; ".join(dict.fromkeys(row["errors"])))
            continue
        table.add_row(
            "*" if row["pareto"] else "", row["recipe"], _figure(metric, row["quality"]),
            *(_figure(name, row["metrics"][name]) for name in further), f"{row['peak_memory_bytes']['mean'] / GIB:.2f}",
            f"{row['train_seconds']['mean']:.1f}", f"{row['tokens']['mean']:,.0f}", f"{row['trainable']:,}",
            str(row["runs"]), "; ".join(dict.fromkeys(row["errors"])), style="bold" if row["pareto"] else "",
        )  # fmt: skip
    return table


def ranked(standings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the recipes, those with a quality first, the best of them before the others."""
    sign = 1 if standings["lower_is_better"] else -1
    return sorted(
        standings["recipes"],
        key=lambda row: (row["quality"] is None, sign * row["quality"]["mean"] if row["quality"] else 0.0),
    )


def _figure(name: str, spread: Mapping[str, float]) -> str:
    form = "{:.1%}" if name in SHARES else "{:.4g}"
    mean, low, high = (form.format(spread[key]) for key in ("mean", "lowest", "highest"))
    return mean if spread["lowest"] == spread["highest"] else f"{mean} ({low} – {high})"

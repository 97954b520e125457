"""What lm-evaluation-harness measured, as a table."""

from collections.abc import Mapping
from typing import Any


def harness_table(found: Mapping[str, Any], title: str) -> Any:
    """Return a rich table of every task's metrics, each with its standard error.

    Args:
        found: as `harness.evaluate_tasks` returns it.
        title: above the table.
    """
    from rich.table import Table

    table = Table(
        title=title,
        caption=f"lm-evaluation-harness {found['versions']['lm_eval']}; value ± standard error",
        title_justify="left",
        caption_justify="left",
    )
    sides = [side for side in ("before", "after") if found[side]]
    for heading in ("task", "metric", "rows"):
        table.add_column(heading, justify="right" if heading == "rows" else "left")
    for side in sides:
        table.add_column({"before": "base", "after": "trained"}[side], justify="right")
    for task, metrics in found["after"].items():
        for metric in metrics:
            rows = found["samples"].get(task)
            shown = (_value(found[side].get(task, {}).get(metric)) for side in sides)
            table.add_row(task, metric, "" if rows is None else f"{rows:,}", *shown)
    return table


def _value(figure: Mapping[str, float | None] | None) -> str:
    if figure is None:
        return "-"
    error = figure["standard_error"]
    return f"{figure['value']:.4g}" + ("" if error is None else f" ± {error:.2g}")

"""The gate's verdict as a table."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.metric_facts import SHARES


def gate_table(verdict: Mapping[str, Any], title: str) -> Any:
    """Return a rich table of the conditions, and of the regression set by subject.

    Args:
        verdict: as `gate.decide` returns it.
        title: above the table.
    """
    from rich.table import Table

    table = Table(
        title=title,
        caption=f"difference with its {verdict['confidence']:.0%} interval, by rows that are drawn for both",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("", "rows", "base", "trained", "difference", "wanted", ""):
        table.add_column(heading, justify="right" if heading not in ("", "wanted") else "left")
    for condition in verdict["conditions"]:
        share = condition["name"] == "regression" or condition["metric"] in SHARES
        shown = [f"{condition[side]:.1%}" if share else f"{condition[side]:,.4g}" for side in ("base", "trained")]
        change, low, high = (
            f"{100 * number:+.1f}" if share else f"{number:+,.4g}"
            for number in (condition["difference"], *condition["interval"])
        )
        table.add_row(
            condition["metric"].replace("_", " "), f"{condition['rows']:,}", *shown,
            f"{change}{' pp' if share else ''} ({low} to {high})", condition["wanted"],
            "holds" if condition["ok"] else "[bold]fails[/bold]",
        )  # fmt: skip
        for subject, told in condition.get("subjects", {}).items():
            table.add_row(f"  {subject}", f"{told['rows']:,}", f"{told['base']:,}", f"{told['trained']:,}", "", "", "")
    return table

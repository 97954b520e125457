"""The table at the end of a run, and after an evaluation."""

from collections.abc import Mapping
from typing import Any

GIB = 2**30
_PERCENT = ("accuracy", "macro_f1", "macro_precision", "macro_recall", "exact_match")


def metrics_table(metrics: Mapping[str, Any], title: str) -> Any:
    """Return a rich table of every metric before and after, each with its interval.

    Args:
        metrics: as it stands in `result.json`.
        title: above the table.
    """
    from rich.table import Table

    scored = (
        f"{metrics['rows']} rows of {metrics['split']}, {metrics['confidence']:.0%} intervals"
        if metrics.get("rows")
        else ""
    )
    table = Table(title=title, caption=scored, title_justify="left", caption_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name in metrics["after"]:
        sides = [
            _figure(name, metrics[side][name], metrics["intervals"][side][name]) if metrics[side] else "-"
            for side in ("before", "after")
        ]
        table.add_row(name.replace("_", " "), *sides)
    return table


def run_table(record: Mapping[str, Any]) -> Any:
    """Return a rich table: every metric before and after with its interval, then what the run cost.

    Args:
        record: as it stands in `result.json`.
    """
    measured = record["measured"]
    table = metrics_table(record["metrics"], f"{record['recipe']}: {record['status']}")
    table.add_section()
    trainable, total = record["parameters"]["trainable"], record["parameters"]["total"]
    rows = record["data"]["ledger"]["rows"]
    tokens = record["data"]["ledger"]["tokens"]
    for name, value in {
        "trainable parameters": f"{trainable:,} of {total:,} ({trainable / total:.2%})",
        "rows": f"{rows['kept']:,} kept, {rows['split']} split, {rows['truncated']} cut, {rows['dropped']} dropped",
        "tokens": f"{tokens['total']:,}, {tokens['supervised']:,} with loss",
        "tokens/s": f"{measured['tokens_per_second']:,.0f}" if measured["tokens_per_second"] else "-",
        "peak memory": f"{measured['peak_memory_bytes'] / GIB:.2f} GiB" if measured["peak_memory_bytes"] else "-",
        "folder": record["output_dir"],
    }.items():
        table.add_row(name, "", value)
    return table


def _figure(name: str, value: float, interval: tuple[float, float]) -> str:
    form = "{:.1%}" if name in _PERCENT else "{:,.4g}"
    low, high = (form.format(bound) for bound in interval)
    return f"{form.format(value)} [dim]({low} – {high})[/dim]"

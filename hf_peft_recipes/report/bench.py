"""What a benchmark measured, as a person reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

GIB = 2**30


def cell_line(line: Mapping[str, Any], fresh: bool) -> str:
    """Return one line for a cell that is done: its name, how it ended, and its main figures.

    Args:
        line: of a result file.
        fresh: whether it was measured now.
    """
    told = f"{line['name']}: {line['status']}"
    if line["status"] == "done":
        told += f", {line['measured']['peak_memory_bytes'] / GIB:.2f} GiB while training"
        if line["figures"]:
            told += f", {line['figures']['tokens_per_second']:,.0f} tokens/s"
    elif line.get("error"):
        told += f" ({line['error']})"
    return told if fresh else f"{told} (measured before, at {line['commit']})"


def bench_table(lines: Sequence[Mapping[str, Any]]) -> Any:
    """Return a rich table: a row a cell, measured beside planned.

    Args:
        lines: of a result file.
    """
    from rich.table import Table

    device = lines[0]["hardware"]["device"]["name"] if lines else ""
    table = Table(title=device, title_justify="left")
    for heading in ("cell", "tokens/s", "with loss/s", "step s (p10 – p90)", "MFU", "HFU", "GiB", "planned", "off"):
        table.add_column(heading, justify="left" if heading == "cell" else "right")
    for line in lines:
        table.add_row(line["name"], *(_figures(line) if line["status"] == "done" else [line["status"]]))
    return table


def _figures(line: Mapping[str, Any]) -> list[str]:
    figures, peak = line["figures"], line["measured"]["peak_memory_bytes"]
    planned = line["planned"].get("phases", {}).get("train")
    return [
        *(_speed(figures) if figures else ["-"] * 5),
        f"{peak / GIB:.3f}",
        f"{planned / GIB:.3f}" if planned else "-",
        f"{planned / peak - 1:+.1%}" if planned else "-",
    ]


def _speed(figures: Mapping[str, Any]) -> list[str]:
    spread = figures["step_seconds_percentiles"]
    return [
        f"{figures['tokens_per_second']:,.0f}",
        f"{figures['supervised_tokens_per_second']:,.0f}",
        f"{figures['step_seconds']:.2f} ({spread['10']:.2f} – {spread['90']:.2f})",
        _share(figures["mfu"]),
        _share(figures["hfu"]),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"

"""The table of a run's checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any


def checkpoints_table(verdicts: Sequence[Mapping[str, Any]]) -> Any:
    """Return a rich table of checkpoints: name, when it was written, size, and what is wrong with it.

    Args:
        verdicts: as `api.list_checkpoints` returns them.
    """
    from rich.table import Table

    table = Table()
    for heading in ("checkpoint", "written", "MiB", "verdict"):
        table.add_column(heading, justify="right" if heading == "MiB" else "left")
    for verdict in verdicts:
        size = "-" if verdict["bytes"] is None else f"{verdict['bytes'] / 2**20:,.1f}"
        found = "good" if verdict["good"] else "\n".join(verdict["problems"])
        table.add_row(verdict["name"], verdict["written"] or "-", size, found)
    return table

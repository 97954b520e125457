"""A receipt beside what was found here, as a person reads it."""

from collections.abc import Mapping
from typing import Any


def verdict_table(verdict: Mapping[str, Any], made: str) -> Any:
    """Return a rich table: a row a check.

    Args:
        verdict: as `bench.receipts.Verdict.shown` returns it.
        made: what the receipt was made on.
    """
    from rich.table import Table

    ratio = verdict["speed_ratio"]
    speed = f"; speed here: {ratio:.2f} of the receipt's" if ratio else ""
    setting = "the same device and versions" if verdict["same_setting"] else "another device or other versions"
    table = Table(
        title=f"{verdict['name']}: {'holds' if verdict['holds'] else 'DOES NOT HOLD'} over {verdict['steps']} steps",
        caption=f"receipt: {made}\nhere: {setting}{speed}",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("", "", "receipt", "here", "tolerance"):
        table.add_column(heading, justify="right" if heading in ("receipt", "here") else "left")
    for check in verdict["checks"]:
        told = "ok" if check["ok"] else "FAILED"
        style = "" if check["ok"] else "bold"
        table.add_row(told, check["name"], check["expected"], check["found"], check["tolerance"], style=style)
    return table

"""A receipt, or an undisturbed run, beside what was found here, as a person reads it."""

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
    return _with_checks(table, verdict, "receipt", "here")


def resumption_table(found: Mapping[str, Any]) -> Any:
    """Return a rich table: a row a check.

    Args:
        found: as `bench.resumption.Resumption.shown` returns it.
    """
    from rich.table import Table

    verdict = "is what it is undisturbed" if found["holds"] else "IS NOT WHAT IT IS UNDISTURBED"
    several = f" on {found['processes']} processes" if found["processes"] > 1 else ""
    table = Table(
        title=f"{found['name']}, killed and resumed, {verdict}",
        caption=f"SIG{found['signal']} after step {found['reached']} of {found['steps']}, resumed from step "
        f"{found['resumed_from']}{several}",
        title_justify="left",
        caption_justify="left",
    )
    return _with_checks(table, found, "undisturbed", "resumed")


def _with_checks(table: Any, found: Mapping[str, Any], expected: str, here: str) -> Any:
    for heading in ("", "", expected, here, "tolerance"):
        table.add_column(heading, justify="right" if heading in (expected, here) else "left")
    for check in found["checks"]:
        told = "ok" if check["ok"] else "FAILED"
        style = "" if check["ok"] else "bold"
        table.add_row(told, check["name"], check["expected"], check["found"], check["tolerance"], style=style)
    return table

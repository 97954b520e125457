"""What came of the trials of a sweep, as a person reads it."""

from collections.abc import Mapping
from typing import Any


def trial_line(trial: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return one line for a trial that ended.

    Args:
        trial: one of the summary's.
        summary: as it stands in `trials.json`.
    """
    metric, best = summary["metric"], summary["best"]
    said = f" ({trial['error']})" if trial["error"] else ""
    told = f"{metric} {trial['value']:.4g}" if trial["value"] is not None else f"{trial['status']}{said}"
    values = ", ".join(f"{key} {parameter(value)}" for key, value in trial["params"].items())
    line = f"trial {trial['number']}: {told}; {values}"
    if best is not None:
        found = next(other for other in summary["trials"] if other["number"] == best)
        line += f"; the best is trial {best} ({metric} {found['value']:.4g})"
    return line


def trials_table(summary: Mapping[str, Any]) -> Any:
    """Return a rich table: a row a trial, the best ones first, then those that did not come through, with the reason.

    Args:
        summary: as it stands in `trials.json`.
    """
    from rich.table import Table

    metric, shares = summary["metric"], summary["importances"]
    caption = ""
    if shares:
        caption = "how much each decided: " + ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
    table = Table(title=f"{summary['recipe']}: {len(summary['trials'])} trials", caption=caption)
    table.title_justify = table.caption_justify = "left"
    keys = list(dict.fromkeys(key for trial in summary["trials"] for key in trial["params"]))
    for heading in ("trial", metric.replace("_", " "), *keys, "s", ""):
        table.add_column(heading, justify="left" if not heading else "right", overflow="fold")
    for trial in ranked(summary):
        value = f"{trial['value']:.4g}" if trial["value"] is not None else trial["status"]
        seconds = f"{trial['seconds']:.0f}" if trial["seconds"] is not None else "-"
        table.add_row(
            str(trial["number"]), value, *(parameter(trial["params"].get(key, "-")) for key in keys), seconds,
            _remark(trial), style="bold" if trial["number"] == summary["best"] else "",
        )  # fmt: skip
    return table


def ranked(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the trials, those with a value first, the best of them before the others."""
    sign = 1 if summary["direction"] == "minimize" else -1
    return sorted(
        summary["trials"], key=lambda trial: (trial["value"] is None, sign * (trial["value"] or 0), trial["number"])
    )


def parameter(value: Any) -> str:
    """Return a searched value in few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _remark(trial: Mapping[str, Any]) -> str:
    if trial["error"]:
        return str(trial["error"])
    if trial["status"] == "pruned":
        return f"behind at evaluation {len(trial['evaluations'])} (loss {trial['evaluations'][-1]:.4g})"
    return f"again after trial {trial['again']}" if trial["again"] is not None else ""

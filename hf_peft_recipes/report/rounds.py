"""Rounds on a terminal: a line when one ends, and a table of all."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from hf_peft_recipes.metric_facts import SHARES


def round_line(account: Mapping[str, Any], rounds: int) -> str:
    """Return what a round came to.

    Args:
        account: of the round; 0 is the start.
        rounds: how many there are.
    """
    if not account["round"]:
        return f"start: {_metrics(account)}"
    drawn = f"{account['accepted']} of {account['samples']} answers accepted"
    if account["refinements"]:
        drawn += f", {account['refinements_accepted']} of {account['refinements']} refinements"
    kept = "kept" if account["kept"] else "rolled back"
    learned = f"{account['selection']['rows']} rows learned, " if "metrics" in account else ""
    return f"round {account['round']}/{rounds}: {drawn}; {learned}{kept}: {account['why']}"


def rounds_table(feedback: Mapping[str, Any]) -> Table:
    """Return the rounds of a run as a table.

    Args:
        feedback: the account of the rounds, as `result.json` has it.
    """
    metric = feedback["metric"]
    table = Table(title=f"feedback by {feedback['source']['name']}", title_justify="left")
    for name in ("round", "accepted", "refined", "rows", str(metric or "metric").replace("_", " "), "drift", ""):
        table.add_column(name, justify="left" if name in ("round", "") else "right")
    table.add_row("start", "", "", "", _value(feedback["start"], metric), _drift(feedback["start"]), "")
    for account in feedback["rounds"]:
        table.add_row(
            str(account["round"]),
            f"{account['accepted']} of {account['samples']}",
            f"{account['refinements_accepted']} of {account['refinements']}" if account["refinements"] else "-",
            str(account["selection"]["rows"]),
            _value(account, metric),
            _drift(account),
            "kept" if account["kept"] else f"rolled back: {account['why']}",
        )
    return table


def _metrics(account: Mapping[str, Any]) -> str:
    shown = [name for name in account["metrics"] if name in SHARES][:2] or ["loss"]
    return ", ".join(f"{name.replace('_', ' ')} {_value(account, name)}" for name in shown)


def _value(account: Mapping[str, Any], metric: str | None) -> str:
    value = account.get("metrics", {}).get(metric)
    if value is None:
        return "-"
    return f"{value:.1%}" if metric in SHARES else f"{value:.4g}"


def _drift(account: Mapping[str, Any]) -> str:
    drift = account.get("drift_nats_per_token")
    return "-" if drift is None else f"{drift:.3f}"

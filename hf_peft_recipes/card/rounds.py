"""What the card says of rounds of feedback: by whom, what each one brought, what the same budget brings otherwise."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.metric_facts import SHARES

HEADINGS = ("round", "answers accepted", "refinements accepted", "rows learned", "metric", "drift", "")

_OTHERWISE = {
    "rft": "rejection sampling, as many generated tokens",
    "sft": "plain SFT, as many trained tokens",
}


def sentence(feedback: Mapping[str, Any]) -> str:
    """Return who said what of which answers.

    Args:
        feedback: the account of the rounds, as `result.json` has it.
    """
    totals, source = feedback["totals"], feedback["source"]
    version = f" ({source['version']})" if source["version"] else ""
    kept = [account["round"] for account in feedback["rounds"] if account["kept"]]
    back = [account["round"] for account in feedback["rounds"] if not account["kept"]]
    told = (
        f"The model answered prompts itself, {totals['samples']:,} times, and `{source['name']}`{version} judged the "
        f"answers; {totals['refinements']:,} were written anew in the light of that. It wrote "
        f"{totals['generated_tokens']:,} tokens, and was trained on {totals['trained_tokens']:,}."
    )
    if kept:
        told += f" Kept: round {', '.join(map(str, kept))}."
    if back:
        told += f" Rolled back, as they made it worse: {', '.join(map(str, back))}."
    return told


def rows(feedback: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row a round, of `HEADINGS`, the start first.

    Args:
        feedback: the account of the rounds.
    """
    metric = feedback["metric"]
    start = feedback["start"]
    found: list[tuple[str, ...]] = [("start", "", "", "", _value(start, metric), _drift(start), "")]
    for account in feedback["rounds"]:
        found.append(
            (
                str(account["round"]),
                f"{account['accepted']:,} of {account['samples']:,}",
                f"{account['refinements_accepted']:,} of {account['refinements']:,}",
                f"{account['selection']['rows']:,}",
                _value(account, metric),
                _drift(account),
                "kept" if account["kept"] else f"rolled back: {account['why']}",
            )
        )
    return found


def comparison_rows(feedback: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the same budget brings otherwise; nothing where it was not measured.

    Args:
        feedback: the account of the rounds.
    """
    compared, metric = feedback.get("comparison"), feedback["metric"]
    if not compared:
        return []
    kept = next((account for account in feedback["rounds"] if account["round"] == feedback["kept"]), feedback["start"])
    found = [("these rounds", _value(kept, metric))]
    for key, name in _OTHERWISE.items():
        if other := compared.get(key):
            found.append((name, _value(other, metric)))
    return found


def _value(account: Mapping[str, Any], metric: str | None) -> str:
    value = account.get("metrics", {}).get(metric)
    if value is None:
        return "-"
    low, high = account["intervals"][metric]
    if metric in SHARES:
        return f"{value:.1%} [{low:.1%}, {high:.1%}]"
    return f"{value:.4g} [{low:.4g}, {high:.4g}]"


def _drift(account: Mapping[str, Any]) -> str:
    drift = account.get("drift_nats_per_token")
    return "-" if drift is None else f"{drift:.3f}"

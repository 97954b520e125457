"""The figures of an inspection as words and rows of tables: what both of its views show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.report.stretches import one_line

DUPLICATES = "Rows that are in training too"
"""The heading: a held-out row that was trained on proves nothing."""


@dataclass(frozen=True)
class CheckFact:
    """One check: what was looked at, how it went (None: it could not be looked at), and what to do."""

    name: str
    ok: bool | None
    detail: str
    fix: str


def head_facts(inspection: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return `(name, value)` of what was inspected."""
    columns = inspection.get("columns") or {}
    facts = {
        "recipe": inspection.get("recipe"),
        "data set": inspection.get("dataset"),
        "format": inspection.get("format"),
        "columns": ", ".join(f"{role} = {column}" for role, column in columns.items() if column is not None),
        "model": inspection.get("model"),
        "template": inspection.get("template"),
        "loss on": inspection.get("loss_on"),
        "max_length": figure(inspection.get("max_length")),
        "fingerprint": inspection.get("fingerprint"),
    }
    return [(name, one_line(value)) for name, value in facts.items() if value not in (None, "")]


def split_facts(inspection: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return `(split, rows)`."""
    return [(_words(name), figure(rows)) for name, rows in (inspection.get("splits") or {}).items() if rows is not None]


def check_facts(inspection: Mapping[str, Any]) -> list[CheckFact]:
    """Return the checks in their order; a fix belongs to a failed one only."""
    facts = []
    for check in inspection.get("checks") or ():
        ok = None if check.get("ok") is None else bool(check["ok"])
        words = [one_line(check.get(key) or "") for key in ("name", "detail", "fix")]
        facts.append(CheckFact(words[0] or "check", ok, words[1], "" if ok else words[2]))
    return facts


def ledger_facts(inspection: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return `(what, number, share)`: rows as shares of all rows, tokens as shares of all tokens that were kept."""
    ledger = inspection.get("ledger") or {}
    rows, tokens = ledger.get("rows") or {}, ledger.get("tokens") or {}
    all_rows = (rows.get("kept") or 0) + (rows.get("dropped") or 0)
    all_tokens, supervised = tokens.get("total"), tokens.get("supervised")
    facts = [
        (f"rows {_words(name)}", figure(number), share(number, all_rows))
        for name, number in rows.items()
        if number is not None
    ]
    if all_tokens is not None:
        facts.append(("tokens", figure(all_tokens), ""))
    if supervised is not None:
        facts.append(("tokens with loss", figure(supervised), share(supervised, all_tokens)))
    return facts


def reason_facts(inspection: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return `(rows, reason)` of rows that were left out, the most frequent first."""
    reasons = (inspection.get("ledger") or {}).get("reasons") or {}
    return [(figure(number), one_line(reason)) for reason, number in sorted(reasons.items(), key=lambda item: -item[1])]


def length_facts(inspection: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return `(what, median, p95, max)` in tokens."""
    ledger = inspection.get("ledger") or {}
    facts = []
    for name, key in (("all", "lengths"), ("with loss", "supervised_lengths")):
        lengths = ledger.get(key) or {}
        if lengths:
            median, p95, longest = (figure(lengths.get(part)) or "-" for part in ("median", "p95", "max"))
            facts.append((name, median, p95, longest))
    return facts


def duplicate_facts(inspection: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return `(split, exact, normalized)`."""
    duplicates = (inspection.get("ledger") or {}).get("duplicates") or {}
    return [
        (_words(split), figure(kinds.get("exact")) or "-", figure(kinds.get("normalized")) or "-")
        for split, kinds in duplicates.items()
        if kinds
    ]


def row_name(row: Mapping[str, Any]) -> str:
    """Return where the row stands in the data set."""
    if row.get("place"):
        return one_line(row["place"])
    return "row" if row.get("index") is None else f"row {one_line(row['index'])}"


def row_summary(row: Mapping[str, Any]) -> str:
    """Return the row's length and how much of it carries loss, counted where it is not given."""
    tokens = row.get("tokens") or ()
    length = len(tokens) if row.get("length") is None else row["length"]
    supervised = row.get("supervised")
    if supervised is None:
        supervised = sum(bool(token.get("supervised")) for token in tokens)
    counted = f"{figure(length)} {'token' if length == 1 else 'tokens'}"
    if row.get("label") is not None:
        return f"{counted}, label {row['label']!r}"
    if not supervised:
        return f"{counted}, none with loss"
    return f"{counted}, {figure(supervised)} with loss ({share(supervised, length)})"


def figure(number: Any) -> str:
    """Return a number with its thousands apart; nothing for None."""
    if number is None:
        return ""
    return f"{number:,}" if isinstance(number, (int, float)) else one_line(number)


def share(number: Any, whole: Any) -> str:
    """Return the share in per cent; nothing where there is no whole."""
    if not isinstance(number, (int, float)) or not whole:
        return ""
    # What is nearly none or nearly all must not read as none or all.
    part = number / whole
    return "<0.1%" if 0 < part < 0.001 else ">99.9%" if 0.999 < part < 1 else f"{part:.1%}"


def _words(name: str) -> str:
    return one_line(name).replace("_", " ")

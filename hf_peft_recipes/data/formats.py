"""Which format a table has: recognised from its columns, or made from what the user says which column is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_peft_recipes.data.columns import ROLES, Template, by_position, check_column, listed, parse_template
from hf_peft_recipes.data.examples import BadRowError, Example, Format, as_boolean
from hf_peft_recipes.data.records import Row
from hf_peft_recipes.errors import UserError, did_you_mean

__all__ = ["BadRowError", "Example", "Format", "detect_format"]

_SYSTEM = {"system": "system"}
_BESIDE = {"system": "system", "tools": "tools"}


@dataclass(frozen=True)
class _Layout:
    """Columns that a format is recognised by."""

    name: str
    needed: Mapping[str, str]
    """Role to column."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """Roles that are taken up where the column is there."""
    joins_exactly: bool = False

    def candidate(self) -> str:
        """Return the layout for a message, with the flags that choose it."""
        flags = " ".join(f"--data.columns.{role} {column}" for role, column in self.needed.items() if role in ROLES)
        return f"{self.name} ({flags})"


_KNOWN = (
    _Layout("messages", {"messages": "messages"}, _BESIDE),
    _Layout("messages", {"messages": "conversations"}, _BESIDE),
    _Layout("messages", {"messages": "conversation"}, _BESIDE),
    _Layout("preference", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}, _BESIDE, True),
    _Layout("preference", {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}, _BESIDE),
    _Layout("preference", {"chosen": "chosen", "rejected": "rejected"}, _BESIDE, True),
    _Layout("feedback", {"prompt": "prompt", "completion": "completion", "label": "label"}, _BESIDE, True),
    _Layout("prompt_completion", {"prompt": "prompt", "completion": "completion"}, _BESIDE, True),
    _Layout("prompt_completion", {"prompt": "prompt", "completion": "response"}, _BESIDE),
    _Layout("prompt_completion", {"prompt": "prompt", "completion": "solution"}, _BESIDE),
    _Layout("alpaca", {"prompt": "instruction", "completion": "output"}, {"input": "input", **_SYSTEM}),
    _Layout("alpaca", {"prompt": "instruction", "completion": "response"}, {"input": "context", **_SYSTEM}),
    _Layout("question_answer", {"prompt": "question", "completion": "answer"}, _SYSTEM),
    _Layout("source_target", {"prompt": "source", "completion": "target"}, _SYSTEM),
    _Layout("tokens_tags", {"tokens": "tokens", "tags": "tags"}, _SYSTEM),
    _Layout("tokens_tags", {"tokens": "tokens", "tags": "ner_tags"}, _SYSTEM),
    _Layout("text_label", {"prompt": "text", "completion": "label"}, _SYSTEM),
    _Layout("text", {"text": "text"}),
    _Layout("prompt_only", {"prompt": "prompt"}, _BESIDE),
)
"""Formats by their columns. One that needs all columns of another and more is taken before it."""

_MAPPED = (
    ("messages", {"messages"}, {"system", "tools"}),
    ("preference", {"chosen", "rejected"}, {"prompt", "system", "tools"}),
    ("feedback", {"prompt", "completion", "label"}, {"system", "tools", "input"}),
    ("mapped", {"prompt", "completion"}, {"system", "tools", "input"}),
    ("text_label", {"text", "label"}, {"system"}),
    ("tokens_tags", {"tokens", "tags"}, {"system"}),
    ("text", {"text"}, set[str]()),
)
"""Formats by the roles that the user names: those that are needed, and those that may be there."""


def detect_format(
    columns: Sequence[str],
    mapping: Mapping[str, Any],
    label: str,
    templates: Mapping[str, str] | None = None,
    rows: Sequence[Row] = (),
) -> Format:
    """Return the format of a table.

    Args:
        columns: the table's columns.
        mapping: role to column, as the user gave it: `{"prompt": "question", "completion": "answer"}`.
        label: what the table is called in messages.
        templates: role to a text with `{column}` in it, instead of a column: `{"prompt": "Review: {text}"}`. Roles that
            are given neither way are those of the recognised format.
        rows: some of the rows, which decide where the columns alone do not.

    Raises:
        UserError: a column that is not there, a template that cannot be read, roles that make no format, columns in
            which no format is recognised, or more than one.
    """
    named = {role: str(column) for role, column in mapping.items()}
    filled = dict(templates or {})
    _check_roles(named, filled, label)
    for role, column in named.items():
        check_column(column, f"for {role} (from data.columns)", columns, label)
    made = {role: parse_template(role, text, columns, label) for role, text in filled.items()}
    given = {*named, *made}
    if not given:
        return _format(_recognised(columns, label, rows), columns, {}, {})
    for name, needed, optional in _MAPPED:
        if needed <= given <= needed | optional:
            return _from_roles(name, named, made)
    if made or given <= {"system", "tools"}:
        # What is said adds to what is recognised; said of the columns alone, half a mapping is more likely a slip.
        layout = _recognised(columns, label, rows)
        if given <= {*layout.needed, *layout.optional}:
            return _format(layout, columns, named, made)
    raise UserError(
        f"{label}: data.{'columns' if named else 'format'} gives {', '.join(sorted(given))}; wanted is "
        f"messages alone, text alone, prompt and completion (with label for feedback), chosen and rejected (with or "
        f"without prompt), or text and label; system and tools may come with them"
    )


def _check_roles(named: Mapping[str, str], filled: Mapping[str, str], label: str) -> None:
    for origin, roles in (("data.columns", named), ("data.templates", filled)):
        for role in roles:
            if role not in ROLES:
                raise UserError(
                    f"{label}: unknown role {role!r} in {origin}{did_you_mean(role, ROLES)} (roles: {', '.join(ROLES)})"
                )
    both = [role for role in named if role in filled]
    if both:
        raise UserError(f"{label}: {both[0]} is given both by data.columns and by data.templates")


def _from_roles(name: str, named: Mapping[str, str], made: Mapping[str, Template]) -> Format:
    if name == "text_label":
        roles = {"text": "prompt", "label": "completion"}
        named = {roles.get(role, role): column for role, column in named.items()}
        made = {roles.get(role, role): template for role, template in made.items()}
    return Format(name, dict(named), templates=dict(made))


def _format(layout: _Layout, columns: Sequence[str], named: Mapping[str, str], made: Mapping[str, Template]) -> Format:
    beside = {role: column for role, column in layout.optional.items() if column in columns}
    chosen = {**layout.needed, **beside, **named}
    kept = {role: column for role, column in chosen.items() if role not in made}
    return Format(layout.name, kept, layout.joins_exactly and not made, dict(made))


def _recognised(columns: Sequence[str], label: str, rows: Sequence[Row]) -> _Layout:
    matches = [known for known in _KNOWN if set(known.needed.values()) <= set(columns) and _fits(known, columns, rows)]
    if not matches:
        raise _nothing_recognised(columns, label)
    # Plain text is what is left when nothing says more; two that both say something are not to be guessed between.
    telling = [known for known in matches if known.name != "text"] or matches
    widest = [
        known
        for known in telling
        if not any(set(known.needed.values()) < set(other.needed.values()) for other in telling)
    ]
    if len(widest) > 1:
        options = " or ".join(known.candidate() for known in widest)
        raise UserError(f"{label}: the columns could be {options}; give the flags of the one that is meant")
    return widest[0]


def _fits(layout: _Layout, columns: Sequence[str], rows: Sequence[Row]) -> bool:
    """Return whether first rows speak for the layout: feedback is true or false, other labels are answers' kinds.

    A prompt stands alone only where there is no column that could be its answer.
    """
    if layout.name == "prompt_only":
        return set(columns) <= {*layout.needed.values(), *layout.optional.values()}
    if layout.name != "feedback":
        return True
    labels = [row.get("label") for row in rows]
    return all(value is None or as_boolean(value) is not None for value in labels)


def _nothing_recognised(columns: Sequence[str], label: str) -> UserError:
    if by_position({name: name for name in columns}):
        hint = "its first row is taken for data, as it is too long for names; "
    elif any(len(name.split()) > 3 for name in columns):
        hint = "if the first row is data, name columns by number; "
    else:
        hint = ""
    shown = [name if len(name) <= 20 and " " not in name else str(number) for number, name in enumerate(columns, 1)]
    flags = (
        f"--data.columns.prompt {shown[0]} --data.columns.completion {shown[-1]}"
        if len(shown) > 1
        else (f"--data.columns.text {shown[0]}" if shown else "")
    )
    return UserError(
        f"{label}: no format is recognised in the columns {listed(columns)}; {hint}say which is what: {flags}"
    )

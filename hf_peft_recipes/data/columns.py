"""Which column plays which role, and templates that make a role's text from several columns."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.data.records import BadRowError, Row
from hf_peft_recipes.errors import UserError, did_you_mean

ROLES = (
    "messages", "text", "prompt", "completion", "system", "chosen", "rejected", "label", "tools", "input", "tokens",
    "tags",
)  # fmt: skip
"""What a column of the data can be: the keys of `data.columns` and `data.format`."""

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_SHOWN_COLUMNS = 20
_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Template:
    """A text with placeholders for columns: `Review: {text}`."""

    role: str
    parts: tuple[tuple[str, str | None], ...]
    """Literal text, and the column that follows it (None at the end)."""

    def fill(self, row: Row) -> str:
        """Return the text for a row; numbers are written out, an empty text stays empty.

        Raises:
            BadRowError: a column is missing, null, or holds what is no text.
        """
        return "".join(
            literal if column is None else literal + self._value(row, column) for literal, column in self.parts
        )

    def _value(self, row: Row, column: str) -> str:
        value = row_value(row, column)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise BadRowError(f"{column!r}, in the template of {self.role}, is {type_of(value)}, not text")
        return value


def parse_template(role: str, text: str, columns: Sequence[str], label: str) -> Template:
    """Return the template of a role.

    Args:
        role: one of `ROLES`.
        text: literal text with `{column}` in it; a literal brace is doubled.
        columns: the columns that there are.
        label: what the table is called in messages.

    Raises:
        UserError: a column that is not there, a brace that is alone, a template that is no text.
    """
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{label}: the template of {role} (from data.format) is {text!r}; a text is wanted")
    parts, literal, end = list[tuple[str, str | None]](), "", 0
    for found in _PIECE.finditer(text):
        literal += text[end : found.start()]
        end = found.end()
        if found[0] in ("{{", "}}"):
            literal += found[0][0]
        elif found[1] is None:
            raise UserError(
                f"{label}: a {found[0]!r} stands alone in the template of {role} (from data.format); "
                f"a column is written {{name}}, a literal brace twice"
            )
        else:
            # Columns of a file without a head are numbers, and YAML may have read 1 as one.
            check_column(found[1], f"in the template of {role} (from data.format)", columns, label)
            parts.append((literal, found[1]))
            literal = ""
    return Template(role, (*parts, (literal + text[end:], None)))


def check_column(column: str, where: str, columns: Sequence[str], label: str) -> None:
    """Raise a UserError, with the nearest right name, unless `column` is one of `columns`.

    Args:
        column: the name.
        where: what it is named for, and where: `for prompt (from data.columns)`.
        columns: the columns that there are.
        label: what the table is called in messages.
    """
    if column not in columns:
        raise UserError(
            f"{label}: no column {column!r} {where}{did_you_mean(column, columns)} (columns: {listed(columns)})"
        )


def by_position(mapping: Mapping[str, Any]) -> bool:
    """Return whether a mapping of roles names columns by number (1, 2 …), as for a file without a head."""
    return bool(mapping) and all(re.fullmatch(r"[1-9]\d*", str(column)) for column in mapping.values())


def row_value(row: Row, column: str) -> Any:
    """Return the value of a column.

    Raises:
        BadRowError: the row has no such column.
    """
    if column not in row:
        raise BadRowError(f"there is no column {column!r} in the row")
    return row[column]


def listed(columns: Iterable[str]) -> str:
    """Return the names of columns for a message, the longest ones cut."""
    names = [name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}…" for name in map(one_line, columns)]
    more = f" and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    return ", ".join(names[:_SHOWN_COLUMNS]) + more


def one_line(text: str) -> str:
    """Return the text with line ends and their kin written as escapes, for a message."""
    return text if text.isprintable() else repr(text)[1:-1]


def type_of(value: Any) -> str:
    """Return what a value is, in the words of messages: `null`, `int`, `list`."""
    return "null" if value is None else type(value).__name__

"""What a row means: its format is recognised from the columns, and every row becomes one `Example`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.data.sources import Row
from hf_peft_recipes.errors import UserError, did_you_mean

ROLES_OF_TURNS = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Example:
    """One row: either a conversation or plain text."""

    messages: tuple[Mapping[str, Any], ...] = ()
    supervised_from: int = 0
    """Assistant turns before this index are context, not targets."""
    text: str | None = None

    @property
    def reference(self) -> str | None:
        """The answer that is expected at the end, None for plain text."""
        return self.messages[-1]["content"] if self.messages else None


class BadRowError(ValueError):
    """A row that cannot be used, and why."""


@dataclass(frozen=True)
class Format:
    """A way of laying out rows: the column for each role that it has."""

    name: str
    columns: Mapping[str, str]
    joins_exactly: bool = False
    """Whether prompt and completion were cut to be joined without a separator, as TRL's prompt-completion data are."""

    def example(self, row: Row) -> Example:
        """Return the row as an example.

        Raises:
            BadRowError: a value is missing or of the wrong type.
        """
        if self.name == "text":
            return Example(text=_string(row, self.columns["text"]))
        if self.name == "messages":
            column = self.columns["messages"]
            return Example(_turns(row.get(column), column))
        prompt = _side(row, self.columns["prompt"], "user")
        return Example((*prompt, *_side(row, self.columns["completion"], "assistant")), len(prompt))


# Role -> column, in the order in which they are looked for: the first whose columns are all there is taken.
_KNOWN = (
    Format("messages", {"messages": "messages"}),
    Format("messages", {"messages": "conversations"}),
    Format("prompt_completion", {"prompt": "prompt", "completion": "completion"}, joins_exactly=True),
    Format("question_answer", {"prompt": "question", "completion": "answer"}),
    Format("text_label", {"prompt": "text", "completion": "label"}),
    Format("text", {"text": "text"}),
)


def detect_format(columns: Sequence[str], mapping: Mapping[str, str], label: str) -> Format:
    """Return the format of a table.

    Args:
        columns: the table's columns.
        mapping: role to column, as the user gave it: `{"prompt": "question", "completion": "answer"}`.
        label: what the table is called in messages.

    Raises:
        UserError: a mapped column that is not there, or columns in which no format is recognised.
    """
    for role, column in mapping.items():
        if column not in columns:
            raise UserError(
                f"{label}: no column {column!r} for {role} (from data.columns){did_you_mean(column, columns)} "
                f"(columns: {', '.join(columns)})"
            )
    if mapping:
        return _mapped(mapping, label)
    matches = [known for known in _KNOWN if set(known.columns.values()) <= set(columns)]
    if not matches:
        raise UserError(
            f"{label}: no format is recognised in the columns {', '.join(columns)}; "
            f"say which is what: --data.columns.prompt {columns[0]} --data.columns.completion {columns[-1]}"
        )
    # Plain text is what is left when nothing says more; two that both say something are not to be guessed between.
    telling = [known for known in matches if known.name != "text"]
    if len(telling) > 1:
        options = " or ".join(f"{known.name} ({', '.join(known.columns.values())})" for known in telling)
        raise UserError(f"{label}: the columns could be {options}; choose with --data.columns.<role> <column>")
    return (telling or matches)[0]


def _mapped(mapping: Mapping[str, str], label: str) -> Format:
    for roles, name in ((("messages",), "messages"), (("prompt", "completion"), "mapped"), (("text",), "text")):
        if set(mapping) == set(roles):
            return Format(name, dict(mapping))
    raise UserError(
        f"{label}: data.columns gives {', '.join(mapping)}; "
        f"wanted is messages alone, text alone, or prompt and completion"
    )


def _string(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise BadRowError(f"{column!r} is {'null' if value is None else type(value).__name__}, not text")
    if not value.strip():
        raise BadRowError(f"{column!r} is empty")
    return value


def _side(row: Row, column: str, role: str) -> tuple[Mapping[str, Any], ...]:
    value = row.get(column)
    if isinstance(value, list):
        return _turns(value, column)
    if role == "assistant" and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    return ({"role": role, "content": _string({column: value}, column)},)


def _turns(value: Any, column: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise BadRowError(
            f"{column!r} is {'null' if value is None else 'empty' if value == [] else 'no list of turns'}"
        )
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, Mapping):
            raise BadRowError(f"message {number} of {column!r} is {type(turn).__name__}, not a mapping")
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES_OF_TURNS:
            raise BadRowError(f'"role" of message {number} is {role!r}; known: {", ".join(ROLES_OF_TURNS)}')
        if not isinstance(content, str):
            raise BadRowError(
                f'"content" of message {number} is {"null" if content is None else type(content).__name__}'
            )
        turns.append({"role": role, "content": content})
    return tuple(turns)

"""Which column of a log is what: found by its name, or said by the user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_peft_recipes.data.columns import check_column, listed
from hf_peft_recipes.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Role:
    """What a column of a log can be, and the names by which it is found."""

    name: str
    sure: tuple[str, ...] = ()
    """Names that say what the column is; two of them in one table are not guessed between."""
    likely: tuple[str, ...] = ()
    """Names that are taken where none of the sure ones is there, the first that is."""


CONVERSATION = (
    Role("prompt", ("prompt", "question", "query", "instruction", "user_prompt", "user_message"), ("input",)),
    Role("input", ("input",)),
    Role("messages", ("messages", "conversation", "conversations")),
    Role("system", ("system", "system_prompt")),
)
COMPLETION = Role(
    "completion",
    ("completion", "response", "answer", "output", "generation", "reply", "model_output", "model_response"),
    ("text",),
)
BESIDE = (
    Role("feedback", ("comment", "critique", "feedback_text", "explanation"), ("feedback", "reason", "note", "notes")),
    Role("user", ("user", "user_id", "annotator", "annotator_id", "rater", "judge", "worker_id")),
    Role("model", ("model", "model_name", "model_id")),
    Role("time", ("time", "timestamp", "created_at", "date", "tstamp")),
)
"""Roles that every log may have."""


def find_columns(
    log: str, roles: Sequence[Role], needed: Sequence[frozenset[str]], names: Sequence[str], given: Mapping[str, str],
    label: str,
) -> dict[str, str]:  # fmt: skip
    """Return which column plays which role.

    Args:
        log: the name of the kind of log.
        roles: what its columns can be.
        needed: roles that must be there: all of one of these sets.
        names: the table's columns.
        given: role to column, as the user says.
        label: what the table is called in messages.

    Raises:
        UserError: an unknown role or column, a needed role that is missing, or for which several columns could stand.
    """
    known = [role.name for role in roles]
    for name, column in given.items():
        if name not in known:
            near = did_you_mean(name, known)
            raise UserError(f"--columns.{name}: unknown role{near} (roles of {log}: {', '.join(known)})")
        check_column(column, f"for {name} (from --columns.{name})", names, label)
    chosen = dict(given)
    spoken = {column: _plain(column) for column in names if column not in given.values()}
    for role in roles:
        if role.name in chosen:
            continue
        sure = [column for column, plain in spoken.items() if plain in role.sure]
        if len(sure) > 1 and any(role.name in together for together in needed):
            flags = " or ".join(f"--columns.{role.name} {column}" for column in sure)
            raise UserError(f"{label}: which column is the {role.name}: {flags}?")
        likely = [column for word in role.likely for column, plain in spoken.items() if plain == word]
        for column in [*sure, *likely][:1]:
            chosen[role.name] = column
            del spoken[column]
    if any(together <= chosen.keys() for together in needed):
        return chosen
    wanted = min(needed, key=lambda together: len(together - chosen.keys()))
    missing = [name for name in known if name in wanted and name not in chosen]
    flags = " ".join(f"--columns.{name} COLUMN" for name in missing)
    raise UserError(f"{label}: no {' and no '.join(missing)} found in the columns {listed(names)}; say which: {flags}")


def _plain(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")

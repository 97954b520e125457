"""What logs of thumbs, ratings and edits have in common: a prompt and one answer a row."""

from collections.abc import Callable
from typing import Any

from hf_peft_recipes.data.examples import Format
from hf_peft_recipes.data.records import BadRowError
from hf_peft_recipes.feedback.conversion.logs import LogRow, Said, one_answer
from hf_peft_recipes.feedback.conversion.training import prompt_text
from hf_peft_recipes.feedback.record import FeedbackRecord

ANSWERED = (frozenset({"prompt", "completion"}), frozenset({"messages"}))
"""Roles by which a log gives prompt and answer: apart, or as a conversation that ends with the answer."""

_PERSON = "human:"


def said_of(row: LogRow, told: Callable[[LogRow], dict[str, Any] | str]) -> list[Said] | BadRowError:
    """Return what a row says of its answer, or what is wrong with it.

    Args:
        row: of the log.
        told: the row to the fields of a record, or to the words for there being none.
    """
    try:
        found = told(row)
        if isinstance(found, str):
            return [Said(nothing=found)]
        apart = ANSWERED[0] <= row.columns.keys()
        roles = ("prompt", "input", "completion", "system") if apart else ("messages", "system")
        kept = {role: row.columns[role] for role in roles if role in row.columns}
        prompt, completion = one_answer(Format("mapped" if apart else "messages", kept).example(row.values))
        return [Said(prompt, completion, found)]
    except BadRowError as error:
        return error


def beside(record: FeedbackRecord) -> dict[str, Any]:
    """Return of a record what every log can hold: prompt and completion, and where they are told, the words, who said
    them, of which model, and when.
    """
    text = prompt_text(record.prompt)
    name = record.source.name
    told = {
        "prompt": [dict(turn) for turn in record.prompt] if text is None else text,
        "completion": record.completion,
        "comment": record.feedback,
        "user": name.removeprefix(_PERSON) if name.startswith(_PERSON) else None,
        "model": record.model.base,
        "time": record.time,
    }
    return {key: value for key, value in told.items() if value or key in ("prompt", "completion")}

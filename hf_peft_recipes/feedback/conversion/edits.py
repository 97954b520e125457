"""Edited answers: what the model wrote, and what a person made of it."""

from collections.abc import Iterator, Sequence
from typing import Any

from hf_peft_recipes.data.records import BadRowError
from hf_peft_recipes.feedback.conversion.answered import ANSWERED, beside, said_of
from hf_peft_recipes.feedback.conversion.answers import same_text
from hf_peft_recipes.feedback.conversion.logs import LogFormat, LogRow, Said
from hf_peft_recipes.feedback.conversion.roles import BESIDE, COMPLETION, CONVERSATION, Role
from hf_peft_recipes.feedback.record import FeedbackRecord


def read_edits(rows: Sequence[LogRow], scale: str | None) -> Iterator[tuple[LogRow, list[Said] | BadRowError]]:
    """Yield what each row says: a correction; an answer that was left as it was is accepted."""

    def told(row: LogRow) -> dict[str, Any] | str:
        edited = row.text("edited")
        if edited is None:
            return "rows without an edit"
        original = row.get("completion")
        if isinstance(original, str) and same_text(original) == same_text(edited):
            return {"label": True}
        return {"correction": edited}

    return ((row, said_of(row, told)) for row in rows)


def write_edits(record: FeedbackRecord) -> dict[str, Any] | str:
    """Return a record as a row of edits, or why it is none."""
    if record.correction is None and not record.label:
        return "records without a correction or an accepted completion"
    row = beside(record)
    return {"prompt": row.pop("prompt"), "original": row.pop("completion"),
            "edited": record.completion if record.correction is None else record.correction, **row}  # fmt: skip


EDITS = LogFormat(
    "edits",
    (
        *CONVERSATION,
        Role("completion", ("original", "original_answer", "original_response", "draft", "before"), COMPLETION.sure),
        Role(
            "edited",
            (
                "edited",
                "edit",
                "edited_answer",
                "edited_response",
                "corrected",
                "corrected_answer",
                "correction",
                "after",
            ),
            ("revised", "revision", "rewrite", "final", "final_answer"),
        ),
        *BESIDE,
    ),
    tuple(roles | {"edited"} for roles in ANSWERED),
    read_edits,
)

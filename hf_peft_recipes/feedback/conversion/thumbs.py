"""Thumbs: answers with a yes or a no, in any of their spellings."""

from collections.abc import Iterator, Sequence
from typing import Any

from hf_peft_recipes.data.records import BadRowError
from hf_peft_recipes.feedback.conversion.answered import ANSWERED, beside, said_of
from hf_peft_recipes.feedback.conversion.logs import LogFormat, LogRow, Said
from hf_peft_recipes.feedback.conversion.roles import BESIDE, COMPLETION, CONVERSATION, Role
from hf_peft_recipes.feedback.record import FeedbackRecord

_UP = {
    "up", "thumbs_up", "thumbsup", "thumb_up", "+1", "1", "true", "yes", "like", "liked", "upvote", "upvoted", "good",
    "positive", "accept", "accepted", "helpful", "👍",
}  # fmt: skip
_DOWN = {
    "down", "thumbs_down", "thumbsdown", "thumb_down", "-1", "false", "no", "dislike", "disliked", "downvote",
    "downvoted", "bad", "negative", "reject", "rejected", "unhelpful", "👎",
}  # fmt: skip
_NEUTRAL = {"none", "null", "neutral", "nan", ""}


def read_thumbs(rows: Sequence[LogRow], scale: str | None) -> Iterator[tuple[LogRow, list[Said] | BadRowError]]:
    """Yield what each row says. A 0 is down where the others are 1, and no thumb where there are -1 too."""
    has_minus = any(_word(row.get("thumbs")) == "-1" for row in rows)

    def told(row: LogRow) -> dict[str, Any] | str:
        word = _word(row.get("thumbs"))
        if word in _NEUTRAL or (word == "0" and has_minus):
            return "rows without a thumb"
        if word in _UP:
            return {"label": True}
        if word in _DOWN or word == "0":
            return {"label": False}
        raise BadRowError(f"{row.columns['thumbs']!r} is {str(row.get('thumbs'))[:40]!r}, neither up nor down")

    return ((row, said_of(row, told)) for row in rows)


def write_thumbs(record: FeedbackRecord) -> dict[str, Any] | str:
    """Return a record as a row of thumbs, or why it is none."""
    if record.label is None:
        return "records without a label"
    return {**beside(record), "thumbs": "up" if record.label else "down"}


def _word(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str("" if value is None else value).strip().strip(":").lower().replace(" ", "_").replace("s-", "s_")


THUMBS = LogFormat(
    "thumbs",
    (
        *CONVERSATION,
        COMPLETION,
        Role(
            "thumbs",
            ("thumbs", "thumb", "thumbs_up", "vote", "reaction", "is_liked", "liked", "like"),
            ("rating", "label", "feedback", "score", "accepted", "value"),
        ),
        *BESIDE,
    ),
    tuple(roles | {"thumbs"} for roles in ANSWERED),
    read_thumbs,
)

"""What somebody's function says of a completion, brought to one form."""

import numbers
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hf_peft_recipes.errors import did_you_mean
from hf_peft_recipes.feedback.asking import Feedback
from hf_peft_recipes.feedback.record import BadRecordError, FeedbackRecord, Origin, as_turns

_KEYS = tuple(field.name for field in fields(Feedback))


def as_feedback(value: Any) -> Feedback:
    """Return feedback, checked: of a mapping, of true or false (a label), of a number (a score), or as it is.

    Args:
        value: as a function returned it.

    Raises:
        BadRecordError: it is nothing of these, says nothing, or something out of its range.
    """
    said = value if isinstance(value, Feedback) else Feedback(**_keys(_plain(value)))
    # A record holds feedback to what it may be; who writes it down would only find out later.
    FeedbackRecord(as_turns("?"), "", Origin("it"), said.score, said.label, said.text, said.correction)
    return said


def _keys(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        for key in value:
            if key not in _KEYS:
                raise BadRecordError(f"it returned the key {key!r}{did_you_mean(str(key), _KEYS)}")
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, bool):
        return {"label": value}
    if isinstance(value, float):
        return {"score": value}
    if isinstance(value, str):
        raise BadRecordError("it returned a text, which may be words or a correction: return {'text': …, 'score': …}")
    raise BadRecordError(
        f"it returned {type(value).__name__}; a score, a label or a mapping of {', '.join(_KEYS)} is wanted"
    )


def _plain(value: Any) -> Any:
    """Return a number of another library, numpy's or torch's for one, as Python's own."""
    if not isinstance(value, (bool, str, Mapping)) and callable(getattr(value, "item", None)):
        value = value.item()
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value

"""Ratings: answers with so many stars, points or per cent."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hf_peft_recipes.data.records import BadRowError
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.conversion.answered import ANSWERED, beside, said_of
from hf_peft_recipes.feedback.conversion.logs import LogFormat, LogRow, Said
from hf_peft_recipes.feedback.conversion.roles import BESIDE, COMPLETION, CONVERSATION, Role
from hf_peft_recipes.feedback.record import FeedbackRecord

Scale = tuple[float, float]
"""The worst and the best rating."""

_SCALE = re.compile(r"(-?\d+(?:\.\d+)?)\s*(?:-|\.\.|:)\s*(-?\d+(?:\.\d+)?)%?")
_USUAL: tuple[Scale, ...] = ((0, 1), (1, 5), (0, 5), (1, 10), (0, 10), (0, 100))
"""Scales that people use; the first that holds all ratings is taken."""
RATING_SCALE = "1-5"
"""What ratings are written in, where nothing else is asked for."""


def parse_scale(text: str) -> Scale:
    """Return the ends of a scale that is written `1-5`.

    Raises:
        UserError: it is no such thing.
    """
    found = _SCALE.fullmatch(text.strip())
    ends = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    if ends[0] >= ends[1]:
        raise UserError(f"--scale {text!r}: the worst and the best rating are wanted, as in 1-5, 0-10 or 0-100")
    return ends


def read_ratings(rows: Sequence[LogRow], scale: str | None) -> Iterator[tuple[LogRow, list[Said] | BadRowError]]:
    """Yield what each row says: the rating as a share of the way from the worst one to the best."""
    low, high = _scale_of(rows, scale)

    def told(row: LogRow) -> dict[str, Any] | str:
        value = _number(row)
        if value is None:
            return "rows without a rating"
        if not low <= value <= high:
            raise BadRowError(f"{row.columns['rating']!r} is {value:g}, outside of the scale {low:g}-{high:g}")
        return {"score": (value - low) / (high - low)}

    return ((row, said_of(row, told)) for row in rows)


def write_rating(record: FeedbackRecord, scale: Scale) -> dict[str, Any] | str:
    """Return a record as a row of ratings, or why it is none."""
    if record.score is None:
        return "records without a score"
    low, high = scale
    # Sixths of a scale of seven come back as whole numbers.
    value = round(low + record.score * (high - low), 9)
    return {**beside(record), "rating": int(value) if value.is_integer() else value}


def _scale_of(rows: Sequence[LogRow], scale: str | None) -> Scale:
    if scale is not None:
        return parse_scale(scale)
    values, percent = list[float](), False
    for row in rows:
        try:
            value = _number(row)
        except BadRowError:
            continue
        percent = percent or str(row.get("rating")).strip().endswith("%")
        if value is not None:
            values.append(value)
    if percent or not values:
        return 0, 100
    low, high = min(values), max(values)
    found = next((ends for ends in _USUAL if ends[0] <= low and high <= ends[1]), None)
    if found is None or low == high == 1:
        raise UserError(f"ratings run from {low:g} to {high:g}, which tells no scale; give it: --scale 1-5")
    return found


def _scale_note(rows: Sequence[LogRow], scale: str | None) -> list[str]:
    if scale is not None:
        return []
    low, high = _scale_of(rows, scale)
    return [f"ratings are taken for a scale of {low:g}-{high:g}; --scale says otherwise"]


def _number(row: LogRow) -> float | None:
    value = row.get("rating")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        number = float(str(value).strip().removesuffix("%")) if not isinstance(value, bool) else math.inf
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRowError(f"{row.columns['rating']!r} is {str(value)[:40]!r}, no number")
    return number


RATINGS = LogFormat(
    "ratings",
    (
        *CONVERSATION,
        COMPLETION,
        Role("rating", ("rating", "stars", "score", "grade", "points"), ("label", "quality", "overall")),
        *BESIDE,
    ),
    tuple(roles | {"rating"} for roles in ANSWERED),
    read_ratings,
    _scale_note,
    has_scale=True,
)

"""Records to the logs that other software reads: thumbs, ratings, edits, preferences."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from hf_peft_recipes.feedback.conversion.answers import latest
from hf_peft_recipes.feedback.conversion.edits import write_edits
from hf_peft_recipes.feedback.conversion.ratings import RATING_SCALE, parse_scale, write_rating
from hf_peft_recipes.feedback.conversion.thumbs import write_thumbs
from hf_peft_recipes.feedback.conversion.training import Converted, to_dpo
from hf_peft_recipes.feedback.record import FeedbackRecord


def to_thumbs(records: Sequence[FeedbackRecord]) -> Converted:
    """Return a row a record that has a label: `thumbs` is up or down."""
    return _written(records, write_thumbs)


def to_ratings(records: Sequence[FeedbackRecord], scale: str = RATING_SCALE) -> Converted:
    """Return a row a record that has a score, as a `rating`.

    Args:
        records: as `to_sft` takes them.
        scale: from the worst rating to the best, `1-5`.

    Raises:
        UserError: the scale is none.
    """
    ends = parse_scale(scale)
    return _written(records, lambda record: write_rating(record, ends))


def to_edits(records: Sequence[FeedbackRecord]) -> Converted:
    """Return a row a record that has a correction, or accepts its completion by label: `original` and `edited`."""
    return _written(records, write_edits)


def to_preferences(records: Sequence[FeedbackRecord], accept: float = 1.0) -> Converted:
    """Return rows of prompt, chosen and rejected: all pairs of `to_dpo`."""
    return to_dpo(records, accept, max_pairs=None)


def _written(records: Sequence[FeedbackRecord], write: Callable[[FeedbackRecord], dict[str, Any] | str]) -> Converted:
    kept, out = latest(records), Counter[str]()
    out["records that a later one of their source replaces"] = len(records) - len(kept)
    rows, row_ids = list[dict[str, Any]](), list[str]()
    for record in kept:
        made = write(record)
        if isinstance(made, str):
            out[made] += 1
        else:
            rows.append(made)
            row_ids.append(record.row_id)
    rows_in = len({record.row_id for record in records})
    return Converted(rows, row_ids, len(records), rows_in, {reason: number for reason, number in out.items() if number})

"""Feedback to what is trained on, and to and from the logs that people have."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.feedback.conversion.answers import latest
from hf_peft_recipes.feedback.conversion.edits import EDITS
from hf_peft_recipes.feedback.conversion.logs import Imported, ImportRequest, read_log
from hf_peft_recipes.feedback.conversion.preferences import PREFERENCES
from hf_peft_recipes.feedback.conversion.ratings import RATINGS
from hf_peft_recipes.feedback.conversion.thumbs import THUMBS
from hf_peft_recipes.feedback.conversion.training import Converted, to_dpo, to_kto, to_sft
from hf_peft_recipes.feedback.conversion.whole import read_whole
from hf_peft_recipes.feedback.conversion.written import to_edits, to_preferences, to_ratings, to_thumbs
from hf_peft_recipes.feedback.record import FeedbackRecord

__all__ = [
    "CONVERSIONS", "IMPORTS", "Converted", "ImportRequest", "Imported", "convert", "import_records", "latest", "to_dpo",
    "to_kto", "to_sft",
]  # fmt: skip

CONVERSIONS: dict[str, Callable[..., Converted]] = {
    "sft": to_sft,
    "dpo": to_dpo,
    "kto": to_kto,
    "thumbs": to_thumbs,
    "ratings": to_ratings,
    "edits": to_edits,
    "preferences": to_preferences,
}
"""What records can become; what can be chosen of each are its arguments."""

IMPORTS: dict[str, Callable[[Any, ImportRequest], Imported]] = {
    **{layout.name: partial(read_log, layout) for layout in (THUMBS, RATINGS, EDITS, PREFERENCES)},
    "records": read_whole,
}
"""What records can be made of."""


def convert(records: Sequence[FeedbackRecord], to: str, **options: Any) -> Converted:
    """Return what the records become.

    Args:
        records: in the order in which they were written.
        to: one of `CONVERSIONS`.
        options: its arguments; what is None is left to it.

    Raises:
        UserError: there is no such conversion, it takes no such argument, or nothing is left of the records.
    """
    make = CONVERSIONS[_known(to, CONVERSIONS, "--to")]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in inspect.signature(make).parameters:
            takers = [other for other, each in CONVERSIONS.items() if name in inspect.signature(each).parameters]
            raise UserError(f"--{name} does not go with --to {to}, but with {', '.join(takers)}")
    made = make(records, **given)
    if not made.rows:
        reasons = ", ".join(f"{reason}: {number:,}" for reason, number in made.left_out.items())
        raise UserError(f"--to {to}: nothing is left of {made.records:,} records: {reasons}")
    return made


def import_records(dataset: Any, log_format: str, request: ImportRequest | None = None) -> Imported:
    """Return the records that a log comes to.

    Args:
        dataset: a file of any type that data may have, a folder, a Hub id, rows.
        log_format: one of `IMPORTS`.
        request: what is to be said of it.

    Raises:
        UserError: there is no such format; the log cannot be read, its columns are not found, its rows are bad.
    """
    return IMPORTS[_known(log_format, IMPORTS, "--from")](dataset, request or ImportRequest())


def _known(name: str, table: dict[str, Any], flag: str) -> str:
    if name not in table:
        raise UserError(f"{flag} {name!r}{did_you_mean(name, table)} (known: {', '.join(table)})")
    return name

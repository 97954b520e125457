"""What a checker found, in words: one function a scorer, which says what is wrong and, if it may, what is right."""

from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from typing import Any

from hf_peft_recipes.scorers.json_schema import mismatch
from hf_peft_recipes.scorers.label import normalized
from hf_peft_recipes.scorers.numeric import number

_SHOWN_CHARACTERS = 200


def numeric(answer: str, reference: str, right: bool, reveal: bool) -> str:
    """Return in which number the answer ends, and in which it should."""
    found, wanted = number(answer), number(reference)
    if wanted is None:
        raise ValueError(f"the reference {shown(reference)} holds no number")
    if found is None:
        return f"It holds no number; {_digits(wanted)} is right." if reveal else "It holds no number."
    if right:
        return f"It ends in {_digits(found)}, which is right."
    return f"It ends in {_digits(found)}" + (f"; {_digits(wanted)} is right." if reveal else ", which is not right.")


def exact(answer: str, reference: str, right: bool, reveal: bool) -> str:
    """Return what the answer says, and what it should say."""
    if right:
        return "It is right."
    found = f"It says {shown(answer)}" if answer.strip() else "It is empty"
    return f"{found}; {shown(reference)} is right." if reveal else f"{found}, which is not right."


def label(answer: str, reference: str, right: bool, reveal: bool, labels: Collection[str] = ()) -> str:
    """Return which label the answer names, whether there is such a label, and which it should be."""
    if right or not labels or normalized(answer) in {normalized(each) for each in labels}:
        return exact(answer, reference, right, reveal)
    told = f"It says {shown(answer)}, which is none of {', '.join(map(str, labels))}"
    return f"{told}; {shown(reference)} is right." if reveal else f"{told}."


def pattern(answer: str, reference: str | None, right: bool, reveal: bool, pattern: str | None = None) -> str:
    """Return whether the answer has the form, and which form that is."""
    if right:
        return "It has the form that is wanted."
    told = "It does not have the form that is wanted"
    return f"{told}: {shown(reference if pattern is None else pattern)}." if reveal else f"{told}."


def json_schema(
    answer: str, reference: str | None, right: bool, reveal: bool, schema: Mapping[str, Any] | None = None
) -> str:
    """Return where the answer is not of the schema, and why."""
    found = mismatch(answer, reference, schema)
    if found is None:
        return "It is JSON of the schema that is wanted."
    place, message = found
    if not place:
        return f"It is no JSON: {cut(message)}."
    # What the validator says holds parts of the schema.
    return (
        f"At {cut(place)}: {cut(message)}." if reveal else f"It is not of the schema that is wanted, at {cut(place)}."
    )


def unit_tests(reason: str, right: bool, reveal: bool) -> str:
    """Return what ended the answer's code.

    Args:
        reason: of the sandbox, which the code may have made up.
        right: whether it passed.
        reveal: whether the reason is told: it holds the test that failed.
    """
    if right:
        return "It passes its tests."
    return f"It fails its tests: {reason}." if reveal else "It fails its tests."


WORDS: dict[str, Callable[..., str]] = {
    "exact": exact,
    "format": pattern,
    "json_schema": json_schema,
    "label": label,
    "numeric": numeric,
    "regex": pattern,
}
"""Scorer to what words its verdict: `(answer, reference, right, reveal, **its options)`."""


def shown(text: Any) -> str:
    """Return a text as a quotation of one line."""
    return repr(cut(" ".join(str(text).split())))


def cut(text: str) -> str:
    """Return the text, or its beginning where it is long."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _digits(value: Decimal) -> str:
    return cut(f"{value:f}" if abs(value.adjusted()) < _SHOWN_CHARACTERS else str(value))

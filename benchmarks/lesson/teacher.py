"""The teacher: says in words which of the things in an answer were otherwise, and how."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_peft_recipes.feedback.asking import Asked

_SENTENCE = re.compile(r"The (\w+) was (\w+)\.")


def question(things: Sequence[str]) -> str:
    """Return `How was the kettle and the lamp?`"""
    return f"How was {' and '.join(f'the {thing}' for thing in things)}?"


def statement(qualities: Mapping[str, str]) -> str:
    """Return `The kettle was dull. The lamp was silly.`

    Args:
        qualities: thing to quality.
    """
    return " ".join(f"The {thing} was {quality}." for thing, quality in qualities.items())


def say(answer: str, reference: str) -> str:
    """Return what the teacher says of an answer: how those things were of which it does not tell so.

    Args:
        answer: of the model.
        reference: the right one.
    """
    right, told = dict(_SENTENCE.findall(reference)), dict(_SENTENCE.findall(answer))
    wrong = {thing: quality for thing, quality in right.items() if told.get(thing) != quality}
    if wrong:
        return f"No. {statement(wrong)}"
    return "Yes." if answer == reference else "No. That is not all, or too much."


def teach(asked: Asked) -> dict[str, Any]:
    """Return the share of things that an answer is right about, and what is to be said of it.

    Args:
        asked: the answer, with the right one beside it.
    """
    right, told = dict(_SENTENCE.findall(asked.reference or "")), dict(_SENTENCE.findall(asked.completion))
    share = sum(told.get(thing) == quality for thing, quality in right.items()) / len(right)
    # All things right and something else beside them is not the answer.
    score = 1.0 if asked.completion == asked.reference else min(share, 0.5)
    return {"score": score, "text": say(asked.completion, asked.reference or "")}

"""Numbers: the one after `####`, as GSM8K marks a result, else the last one of a text."""

import re

_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"
_MARKED = re.compile(rf"####\s*({_NUMBER})")
_ANY = re.compile(_NUMBER)


def numeric(answer: str, reference: str) -> float:
    """Return 1.0 when the answer's number is the reference's, else 0.0; without a number on either side it is 0.0."""
    found, wanted = _number(answer), _number(reference)
    return float(found is not None and found == wanted)


def _number(text: str) -> float | None:
    numbers = _MARKED.findall(text) or _ANY.findall(text)
    return float(re.sub(r"[$,]", "", numbers[-1])) if numbers else None

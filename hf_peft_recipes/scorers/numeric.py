"""Numbers at the end of an answer, however it gets there."""

import re
from decimal import Decimal

MARK = "####"
"""Behind it stands the result, in GSM8K's answers (Cobbe et al. 2021, arXiv:2110.14168)."""

# A minus belongs to the number unless it stands behind a word or another number: "5-3" ends in 3.
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d*\.?\d+)(?:[eE][-+]?\d{1,3}\b)?"
)


def number(text: str) -> Decimal | None:
    """Return the number that a text ends in: the first one behind the last `####`, else the last of all; or None.

    Thousands may be set apart by commas; what stands around the number (`$`, `%`, a full stop) is left out.

    Args:
        text: an answer or a reference.
    """
    _, mark, result = text.rpartition(MARK)
    marked = _NUMBER.search(result) if mark else None
    found = marked[0] if marked else next(iter(_NUMBER.findall(text)[::-1]), None)
    return None if found is None else Decimal(found.replace(",", "").replace("\u2212", "-"))


def numeric(answer: str, reference: str) -> float:
    """Return 1.0 when answer and reference end in numbers of the same value, else 0.0; see `number`."""
    wanted = number(reference)
    return float(wanted is not None and number(answer) == wanted)

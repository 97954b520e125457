"""A pattern that the answer has to match."""

import re


def regex(answer: str, reference: str | None, *, pattern: str | None = None) -> float:
    """Return 1.0 when the whole answer, but for white space around it, matches the pattern, else 0.0.

    Args:
        answer: of the model.
        reference: holds the pattern where none is given.
        pattern: a regular expression of Python's `re`; `.` stands for line ends too.

    Raises:
        re.error: the pattern is broken.
    """
    wanted = str(reference) if pattern is None else pattern
    return float(re.fullmatch(wanted.strip(), answer.strip(), re.DOTALL) is not None)

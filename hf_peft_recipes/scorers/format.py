"""The form that a whole answer has to have, whatever it says."""

from hf_peft_recipes.scorers.regex import regex

_WITHIN = r"(?:(?!</?(?:think|answer)>).)+"
THOUGHT_AND_ANSWER = rf"<think>{_WITHIN}</think>\s*<answer>{_WITHIN}</answer>"
"""DeepSeek-R1-Zero's (arXiv:2501.12948, table 1), each mark once."""


def format(answer: str, reference: str | None = None, *, pattern: str = THOUGHT_AND_ANSWER) -> float:
    """Return 1.0 when the whole answer has the form, else 0.0.

    Args:
        answer: of the model.
        reference: not looked at.
        pattern: a regular expression for the whole answer; `.` stands for line ends too.

    Raises:
        re.error: the pattern is broken.
    """
    return regex(answer, reference, pattern=pattern)

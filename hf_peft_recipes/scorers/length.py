"""How near an answer comes to a length."""


def length(
    answer: str, reference: str | None, *, wanted: int | None = None, unit: str = "words", tokens: int | None = None
) -> float:
    """Return 1.0 for an answer of the wanted length, and less in proportion to how far it is off; 0.0 from double on.

    Args:
        answer: of the model.
        reference: whose words are counted where no length is given.
        wanted: the length.
        unit: `words`, or `tokens` of the model.
        tokens: that the answer has; who calls a scorer gives them.

    Raises:
        ValueError: another unit, a length of nothing, or tokens that nobody has counted.
    """
    if unit not in ("words", "tokens"):
        raise ValueError(f"unit {unit!r}: words or tokens are counted")
    if unit == "tokens" and (wanted is None or tokens is None):
        raise ValueError("tokens are counted against a `wanted` number only, and where there is a tokenizer")
    goal = len(str(reference).split()) if wanted is None else wanted
    if goal < 1:
        raise ValueError(f"the wanted length is {goal}")
    found = tokens if unit == "tokens" and tokens is not None else len(answer.split())
    return max(0.0, 1.0 - abs(found - goal) / goal)

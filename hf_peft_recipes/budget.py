"""What a run may spend, where that ends it and not its number of steps: seconds of training, or tokens."""

import re
from dataclasses import dataclass

from hf_peft_recipes.errors import UserError

STEPS = 1_000_000
"""Steps that a run with a budget is set to: more than it makes, and what its schedule is drawn over."""
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_TOKENS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_AMOUNT = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-z]?)", re.I)


@dataclass(frozen=True)
class Budget:
    """One of the two."""

    seconds: float | None = None
    """Of training: loading, evaluating and saving are not counted."""
    tokens: int | None = None
    """That are no padding, with loss or without."""

    def share(self, seconds: float, tokens: int) -> float:
        """Return how much of it is spent, 1 and more where nothing is left."""
        if self.seconds is not None:
            return seconds / self.seconds
        return tokens / self.tokens if self.tokens else 1.0

    def __str__(self) -> str:
        return f"{self.seconds:,.0f} s of training" if self.seconds is not None else f"{self.tokens:,} tokens"


def make_budget(seconds: float | None, tokens: int | None) -> Budget | None:
    """Return the budget, None where there is none."""
    return None if seconds is None and tokens is None else Budget(seconds, tokens)


def parse_budget(time: str | None, tokens: str | None) -> Budget:
    """Return the budget that words of the command line stand for.

    Args:
        time: `90s`, `10m` or `1.5h`.
        tokens: `500k`, `2M` or a number.

    Raises:
        UserError: none of them, both, or what cannot be read.
    """
    if (time is None) == (tokens is None):
        raise UserError("one of --budget 10m (time of training) and --tokens 2M is wanted")
    if time is not None:
        return Budget(seconds=_amount("--budget", time, _SECONDS, "90s, 10m or 1.5h"))
    return Budget(tokens=round(_amount("--tokens", str(tokens), _TOKENS, "500k, 2M or a number")))


def _amount(flag: str, text: str, units: dict[str, int], examples: str) -> float:
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or match[2].lower() not in units or not float(match[1]):
        raise UserError(f"{flag} {text}: {examples} is wanted")
    return float(match[1]) * units[match[2].lower()]

"""What requests to a server have cost so far, and when that is enough."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.endpoint.transport import EndpointError
from hf_peft_recipes.errors import UserError

_BYTES_A_TOKEN = 4
"""Of English text, about; only where a server does not say how many tokens there were."""


class BudgetSpentError(EndpointError):
    """The budget is spent, so nothing was asked."""


@dataclass(frozen=True)
class Budget:
    """What requests may come to; None for as much as it takes."""

    max_requests: int | None = None
    """Those that are tried again are counted again."""
    max_total_tokens: int | None = None
    """Of questions and answers."""
    max_cost: float | None = None
    """In the currency of the prices."""
    input_price: float | None = None
    """Of a million tokens of questions."""
    output_price: float | None = None
    """Of a million tokens of answers."""

    def __post_init__(self) -> None:
        """Refuse a cost that nobody could count."""
        if self.max_cost is not None and (self.input_price is None or self.output_price is None):
            raise UserError("max_cost needs input_price and output_price, each of a million tokens")


class Spending:
    """What was spent, by any number of threads. Requests that are under way when the budget ends are let through."""

    def __init__(self, budget: Budget) -> None:
        """Args:
        budget: that is kept.
        """
        self._budget, self._lock = budget, threading.Lock()
        self.requests = self.input_tokens = self.output_tokens = 0

    @property
    def cost(self) -> float:
        """In the currency of the prices; 0 where there are none."""
        prices = (self._budget.input_price or 0.0, self._budget.output_price or 0.0)
        return (self.input_tokens * prices[0] + self.output_tokens * prices[1]) / 1e6

    def begin(self) -> None:
        """Count a request.

        Raises:
            BudgetSpentError: there is no more for it.
        """
        with self._lock:
            spent = {
                "max_requests": self.requests,
                "max_total_tokens": self.input_tokens + self.output_tokens,
                "max_cost": self.cost,
            }
            for name, value in spent.items():
                limit = getattr(self._budget, name)
                if limit is not None and value >= limit:
                    raise BudgetSpentError(f"budget spent: {name} {limit:g}")
            self.requests += 1

    def add(self, usage: Any, question: bytes, answer: bytes) -> None:
        """Count the tokens of an answered request.

        Args:
            usage: as the answer holds it.
            question: that was sent.
            answer: that came.
        """
        told = usage if isinstance(usage, Mapping) else {}
        with self._lock:
            self.input_tokens += _tokens(told.get("prompt_tokens"), question)
            self.output_tokens += _tokens(told.get("completion_tokens"), answer)


def _tokens(told: Any, text: bytes) -> int:
    return told if isinstance(told, int) and told >= 0 else len(text) // _BYTES_A_TOKEN

"""What the gate says, and the error that it ends with."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.errors import GateError

SHIP, KEEP = "ship", "do not ship"


def require(verdict: Mapping[str, Any]) -> None:
    """Raise a GateError unless the verdict is to ship.

    Args:
        verdict: as `decision.decide` returns it.
    """
    failed = [condition["why"] for condition in verdict["conditions"] if not condition["ok"]]
    if failed:
        raise GateError(f"{KEEP}: {'; '.join(failed)}")

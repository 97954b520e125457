"""The steps of a round, each done once: what one came to is written down, and found there by whoever goes on."""

import time
from collections.abc import Callable
from typing import Any

from hf_peft_recipes.rounds.folder import RoundFolder, read_json, write_json


class Steps:
    """What the steps of one round came to."""

    def __init__(self, folder: RoundFolder) -> None:
        """Args:
        folder: of the round.
        """
        self._path = folder.path / "steps.json"
        self.done: dict[str, dict[str, Any]] = read_json(self._path) or {}

    def do(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what a step came to, with its `seconds`; it is not done again where it is done.

        Args:
            name: of the step.
            work: does it, and returns the figures of it.
        """
        if name not in self.done:
            began = time.perf_counter()
            facts = work()
            self.done[name] = {**facts, "seconds": round(time.perf_counter() - began, 3)}
            write_json(self._path, self.done)
        return self.done[name]

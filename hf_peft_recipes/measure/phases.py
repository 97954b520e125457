"""Time and memory of a run by phase: whoever ends a stretch of work says what it was."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from hf_peft_recipes.measure.energy import read_joules
from hf_peft_recipes.measure.memory import read_peak, release_free_memory, reset_peak

NAMES = ("start", "data", "load", "train", "evaluate", "save", "certify")
"""What a run spends its time on: imports; rows to tokens; model, adapter, trainer; steps; scoring; writing; proof."""


@dataclass
class Cost:
    """What a phase took, all its stretches together; of bytes the most, as `memory.Peak` has them."""

    seconds: float = 0.0
    joules: float | None = None
    host_bytes: int = 0
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_used_bytes: int | None = None


class Phases:
    """A stopwatch whose laps have names: each lap adds the time since the one before to its phase."""

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = {}
        self._mark, self._joules = time.perf_counter(), read_joules()
        # What came before this watch, imports most of it.
        self._add("start", self.since_start())
        reset_peak()

    @staticmethod
    def since_start() -> float:
        """Return the age of this process in seconds."""
        return time.time() - psutil.Process().create_time()

    def lap(self, name: str) -> float:
        """Count what has happened since the last lap as the phase `name`; return its seconds."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self._add(name, seconds)
        joules, before = read_joules(), self._joules
        if joules is not None and before is not None:
            self.costs[name].joules = (self.costs[name].joules or 0.0) + joules - before
        self._joules = joules
        reset_peak()
        return seconds

    def settle(self) -> None:
        """Give back memory that is not used any more, and count the next phase's peak from there."""
        release_free_memory()
        reset_peak()

    def peak_memory_bytes(self, name: str) -> int | None:
        """Return a phase's peak: allocated on the GPU, else resident in host memory; None where it did not happen."""
        cost = self.costs.get(name)
        if cost is None:
            return None
        return cost.host_bytes if cost.allocated_bytes is None else cost.allocated_bytes

    def shown(self) -> dict[str, dict[str, Any]]:
        """Return the costs by phase, as `result.json` has them."""
        return {name: asdict(self.costs[name]) for name in NAMES if name in self.costs}

    def _add(self, name: str, seconds: float) -> None:
        if name not in NAMES:
            raise ValueError(f"no phase is called {name!r}")
        cost = self.costs.setdefault(name, Cost())
        cost.seconds += seconds
        for field, size in asdict(read_peak()).items():
            if size is not None:
                setattr(cost, field, max(getattr(cost, field) or 0, size))

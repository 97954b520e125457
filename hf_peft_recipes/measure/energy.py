"""Energy counters of the hardware, where it has any that can be read."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from hf_peft_recipes.measure.nvml import spent_joules


def read_joules() -> float | None:
    """Return a counter that grows with the energy spent: the first GPU's, else the processor's; None without one."""
    counter = _counter()
    return counter() if counter else None


@cache
def _counter() -> Callable[[], float | None] | None:
    """Return what reads the counter of this machine."""
    return next((counter for counter in (spent_joules, _processor_joules) if counter() is not None), None)


def _processor_joules() -> float | None:
    # Linux' powercap: one folder a package, in microjoules. Virtual machines have none.
    files = list(Path("/sys/class/powercap").glob("intel-rapl:[0-9]/energy_uj"))
    try:
        return sum(int(file.read_text(encoding="ascii")) for file in files) / 1e6 if files else None
    except OSError:
        return None

"""What goes wrong on demand: errors, cut connections, lost answers, slowness, bytes that differ."""

import re
import threading
from dataclasses import dataclass, field

KINDS = ("500", "429", "403", "reset", "lost_answer", "slow", "flip")


@dataclass
class Fault:
    """One thing that goes wrong with the requests that match.

    Args:
        method: as a regular expression: `POST`, `GET|HEAD`.
        path: a regular expression that the path, query included, has somewhere.
        how: `500`, `429`, `403`: that status is answered and nothing is carried out. `reset`: the connection is closed
            in the middle of the request's body, or, where there is none, in the middle of the answer's. `lost_answer`:
            the request is carried out, the connection closed without an answer. `slow`: carried out after `seconds`.
            `flip`: one byte of the answer's body differs.
        times: how often; None for ever.
        after: how many matching requests pass before.
        retry_after: seconds for the header of that name.
    """

    method: str
    path: str
    how: str
    times: int | None = 1
    after: int = 0
    retry_after: int | None = None
    seconds: float = 0.0
    happened: int = field(default=0, init=False)
    """How often it went wrong so far."""
    _passed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.how not in KINDS:
            raise ValueError(f"fault {self.how!r}: one of {', '.join(KINDS)} is wanted")

    def _strikes(self, method: str, path: str) -> bool:
        if not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        if self.times is not None and self.happened >= self.times:
            return False
        if self._passed < self.after:
            self._passed += 1
            return False
        self.happened += 1
        return True


class Faults:
    """The faults that are planned."""

    def __init__(self) -> None:
        self._planned: list[Fault] = []
        self._lock = threading.Lock()

    def plan(self, fault: Fault) -> Fault:
        """Return the fault, which goes wrong from now on."""
        with self._lock:
            self._planned.append(fault)
        return fault

    def clear(self) -> None:
        """Let everything go well again."""
        with self._lock:
            self._planned.clear()

    def strike(self, method: str, path: str) -> Fault | None:
        """Return what goes wrong with this request: the first fault planned that matches."""
        with self._lock:
            return next((fault for fault in self._planned if fault._strikes(method, path)), None)

"""What can go wrong, and the exit code that tells a program which it was."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

EXIT_CODES = {
    0: "done",
    1: "a fault of this software or of a library below it",
    2: "a mistake in what was asked: nothing was loaded or written",
    3: "the run stopped itself: it did not train, made nothing better, or a reward or a source of feedback failed",
    4: "the run stopped itself: the processes that came up are not the ones that were asked for",
    5: "the Hub was not reached or refused; what is on this machine is whole, and the last line says how to go on",
    6: "what was written does not load as what was trained",
    7: "a recipe does not do on this machine what its receipt says",
    8: "the gate says: do not ship",
    9: "the run waits for people's feedback; the last line says how it is given, and how the run goes on",
    10: "preempted: a signal or the time limit ended the run, which goes on with --resume; nothing was published",
    11: "a training step did not fit into memory, however few rows at a time; the last line says what would fit",
    12: "the disk could not be written; the last line says what the run's folder holds, and how the run goes on",
    130: "interrupted from the keyboard",
}


class RecipeError(Exception):
    """Base of every error that this package raises on purpose; `exit_code` is what a command ends with."""

    exit_code = 1
    status = "failed"
    """Of the record of a run that it ends."""


class UserError(RecipeError):
    """A mistake in what was asked. The message is one line: the thing, where it came from, the nearest right answer."""

    exit_code = 2


class UnplannedError(UserError):
    """There is no plan of what was asked for; it can be run all the same."""


class NotTrainedError(RecipeError):
    """Training ran, but tensors that should have been trained did not change, or frozen ones did."""

    exit_code = 3


class NonFiniteError(NotTrainedError):
    """A loss, a gradient or a weight is NaN or infinite; nothing that came of it was saved."""

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        """Args:
        message: one line.
        facts: where it was found, as a run's record has it; with `step` where leaving out that step would help.
        """
        super().__init__(message)
        self.facts: dict[str, Any] = dict(facts or {})

    @property
    def step(self) -> int | None:
        """Return the optimizer step that is to be left out, counted from 1; None where none is at fault."""
        step: int | None = self.facts.get("step")
        return step


class OutOfMemoryError(RecipeError):
    """A training step does not fit into memory, and nothing that keeps the run's result makes it fit."""

    exit_code = 11


class RewardError(RecipeError):
    """A reward function raised, or returned something else than a finite number an answer."""

    exit_code = 3


class SourceError(RecipeError):
    """A source of feedback raised, hung, or answered nonsense, more often than the recipe bears."""

    exit_code = 3


class WaitingError(RecipeError):
    """The run waits for people; the last line says how they are asked, and how the run goes on."""

    exit_code = 9
    status = "waiting"


class LaunchError(RecipeError):
    """The number or kind of processes differs from what was asked for."""

    exit_code = 4


class HubError(RecipeError):
    """The Hub could not be reached, refused, or holds something else than was sent. Nothing local is lost."""

    exit_code = 5


class CertificateError(RecipeError):
    """What was written does not load as what was trained."""

    exit_code = 6


class ReceiptError(RecipeError):
    """A recipe does not do on this machine what its receipt says."""

    exit_code = 7


class GateError(RecipeError):
    """A run does not fulfil what its policy asks for."""

    exit_code = 8


class PreemptedError(BaseException):
    """The process was asked to end, by a signal or its time limit. What was done so far stands.

    Like KeyboardInterrupt it is no Exception: what catches whatever fails, to go on without it, must not catch this.
    It is raised wherever the process happens to be, the imports of libraries that do so included.

    Args:
        message: what is told.
        reason: that was given: `SIGTERM`, `time limit of 2h50m`.
    """

    exit_code = 10
    status = "preempted"
    folder: Path | None = None
    """Of the run, where it goes on with `--resume`; None where it is done, or has written nothing yet."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class DiskError(RecipeError):
    """The disk is full, read-only or broken. What is told: which checkpoint the run goes on from."""

    exit_code = 12


def did_you_mean(name: str, candidates: Iterable[str], limit: int = 3) -> str:
    """Return `"; did you mean 'x' or 'y'?"`, or an empty string when nothing is near `name`."""
    near = difflib.get_close_matches(name, sorted(set(candidates)), n=limit, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""

"""A function of the user's own: called with one `Asked`, it returns what it says of the completion."""

import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hf_peft_recipes.feedback.asking import Asked, Feedback, Policy, SourceError
from hf_peft_recipes.feedback.sources.apart import Apart
from hf_peft_recipes.feedback.sources.said import as_feedback
from hf_peft_recipes.scorers.arguments import import_function, told


class FunctionSource:
    """A function that is found by its path, and runs in a process of its own: whatever it does, the run goes on."""

    needs_reference = False

    def __init__(self, path: str, function: Callable[[Asked], Any], *, seconds: float = 30.0) -> None:
        """Args:
        path: `module:name`.
        function: that is there.
        seconds: for one completion.
        """
        self.name, self.version = path, version_of(function)
        self._apart = Apart(calling, path, seconds)

    def judge(self, asked: Sequence[Asked], policy: Policy | None) -> Iterator[tuple[Asked, Feedback | SourceError]]:
        """Yield what the function says of each completion; see `Source`."""
        for one, said in zip(asked, self._apart.ask(asked), strict=True):
            yield one, SourceError(f"{self.name}: {said}") if isinstance(said, SourceError) else said


class FunctionHere:
    """A function that a caller holds, which may be of use in this process alone.

    One that takes too long is left behind in its thread. One that hangs in native code which holds the interpreter, as
    a regular expression does, holds up the run: a function at a path, `module:name`, does not.
    """

    needs_reference = False

    def __init__(self, path: str, function: Callable[[Asked], Any], *, seconds: float = 30.0) -> None:
        """Args:
        path: under which it is known.
        function: to call.
        seconds: for one completion.
        """
        self.name, self.version = path, version_of(function)
        self._function, self._seconds = function, seconds

    def judge(self, asked: Sequence[Asked], policy: Policy | None) -> Iterator[tuple[Asked, Feedback | SourceError]]:
        """Yield what the function says of each completion; see `Source`."""
        for one in asked:
            yield one, self._within_time(one)

    def _within_time(self, one: Asked) -> Feedback | SourceError:
        found: list[Feedback | SourceError] = [SourceError(f"{self.name}: no answer within {self._seconds:g} s")]

        def call() -> None:
            try:
                found.append(as_feedback(self._function(one)))
            except BaseException as error:
                found.append(SourceError(f"{self.name}: {told(error)}"))

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(self._seconds)
        return found[-1]


def calling(path: str) -> Callable[[Asked], Feedback]:
    """Return what calls the function at a path."""
    function = import_function(path, "feedback.source")
    return lambda one: as_feedback(function(one))


def version_of(function: Any) -> str:
    """Return what tells a function from what it was before a change: a digest of its source, where that is known."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:8]
    except (OSError, TypeError):
        return ""

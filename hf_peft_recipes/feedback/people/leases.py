"""Who has which sample before them, so that two people are not given the same one; shared between processes."""

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.results import open_confided

LEASE_SECONDS = 600
"""How long somebody may look at a sample before it is given to another too."""

_Held = dict[str, tuple[str, float]]
"""By sample: whose, and until when (seconds of the epoch)."""


class Leases:
    """Samples that are before somebody; each person has one at a time.

    They only save double work: whatever becomes of their file, nothing that was judged is lost.
    """

    def __init__(self, path: Path, seconds: float = LEASE_SECONDS, clock: Callable[[], float] = time.time) -> None:
        """Args:
        path: of the file that the processes share.
        seconds: that a lease holds.
        clock: seconds of the epoch, the same for all processes.
        """
        self._path, self._seconds, self._clock = path, seconds, clock

    def take(self, person: str, samples: Sequence[str]) -> str | None:
        """Return the first sample that is the person's already, else the first that is nobody's, and lease it.

        What else the person held is free then.

        Args:
            person: who asks.
            samples: ids of those that wait.
        """
        with self._open() as held:
            own = [sample for sample in samples if sample in held and held[sample][0] == person]
            free = (sample for sample in samples if sample not in held)
            taken = own[0] if own else next(free, None)
            self._drop(held, person)
            if taken is not None:
                held[taken] = person, self._clock() + self._seconds
        return taken

    def keep(self, person: str, sample: str) -> None:
        """Let a lease begin anew; one that another has by now stays theirs."""
        with self._open() as held:
            if sample not in held or held[sample][0] == person:
                held[sample] = person, self._clock() + self._seconds

    def release(self, person: str) -> None:
        """Let go of what the person holds."""
        with self._open() as held:
            self._drop(held, person)

    def of_others(self, person: str) -> Mapping[str, str]:
        """Return who holds which sample, by sample, the person's own left out."""
        with self._open() as held:
            return {sample: who for sample, (who, _) in held.items() if who != person}

    def _drop(self, held: _Held, person: str) -> None:
        for sample in [sample for sample, (who, _) in held.items() if who == person]:
            del held[sample]

    @contextmanager
    def _open(self) -> Iterator[_Held]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a+", opener=open_confided) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            before = file.read()
            held = {sample: lease for sample, lease in _parse(before).items() if lease[1] > self._clock()}
            yield held
            after = json.dumps(held)
            if after != before:
                file.truncate(0)
                file.write(after)


@contextmanager
def alone(journal: Path, person: str) -> Iterator[None]:
    """Hold a name against another terminal that would judge under it, as long as this process lives.

    Args:
        journal: beside which the lock lies.
        person: whose name.

    Raises:
        UserError: another process holds it.
    """
    path = journal.with_name(f".{journal.name}.{person}.lock")
    with open(path, "w", opener=open_confided) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{person!r} is judging in another terminal; --name says who you are") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _parse(text: str) -> _Held:
    try:
        return {str(sample): (str(who), float(until)) for sample, (who, until) in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        # Its writer was ended in the middle.
        return {}

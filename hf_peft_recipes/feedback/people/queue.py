"""What waits for people, who gets what, and what was said: all of it is found in the journal alone.

An undo takes nothing back: the sample comes again, what was said of it counts until the same person says something
else, and that is a record of its own (`…:human:ada#2`). So there is no moment at which a kill could lose a judgement,
and whoever reads takes the last record (`verdicts.latest`).
"""

import os
import threading
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import count

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.asking import Feedback
from hf_peft_recipes.feedback.journal import Journal, parse_line
from hf_peft_recipes.feedback.people.leases import Leases
from hf_peft_recipes.feedback.people.target import Target
from hf_peft_recipes.feedback.record import BadRecordError, FeedbackRecord, Origin
from hf_peft_recipes.feedback.samples import Sample
from hf_peft_recipes.feedback.verdicts import PEOPLE, record_id, sample_id


@dataclass(frozen=True)
class Progress:
    """How far the people are; in samples."""

    total: int
    judged: int
    """By anybody."""
    held: int
    """Not judged, and before somebody else."""

    @property
    def waiting(self) -> int:
        """Return how many nobody has judged."""
        return self.total - self.judged


class Queue:
    """The samples of a target, given out to people; threads and processes may share one."""

    def __init__(self, target: Target, leases: Leases | None = None) -> None:
        """Args:
        target: what is to be judged.
        leases: who has what before them; by default in a file beside the journal.

        Raises:
            UserError: what stands in the journal cannot be read, or nothing can be written beside it.
        """
        self.target = target
        self._journal = Journal(target.journal)
        self._leases = leases or Leases(target.journal.with_name(f".{target.journal.name}.leases"))
        self._lock = threading.Lock()
        self._said: dict[tuple[str, str], list[FeedbackRecord]] = {}
        """By sample and source, in the order of the last record of each."""
        self._seen, self._seen_bytes = 0, 0
        """Which file (its inode), and how far."""
        try:
            self._leases.of_others("")
        except OSError as error:
            raise UserError(f"{str(target.journal.parent)!r} cannot be written to: {error.strerror}") from None
        with self._lock:
            self._look()

    def next(self, person: str, skipped: Collection[str] = ()) -> Sample | None:
        """Return a sample that nobody has judged and nobody else has before them; None where there is none.

        Args:
            person: who asks; gets the same one until it is judged or skipped.
            skipped: ids of what this person does not want now.
        """
        with self._lock:
            self._look()
            samples, judged = self.target.samples(), self._judged()
            left = [sample for sample in samples if sample not in judged and sample not in skipped]
            taken = self._leases.take(person, left)
            return None if taken is None else samples[taken]

    def judge(self, person: str, sample: str, feedback: Feedback) -> FeedbackRecord:
        """Return the record of what a person says of a sample; it is on disk by then.

        What the person has said of it last is not written again: a client that got no answer may ask twice.

        Args:
            person: who says it.
            sample: its id; also of a round that is over.
            feedback: what is said.

        Raises:
            UserError: there is no such sample, or the journal cannot be read.
        """
        with self._lock:
            judged = self.target.find(sample)
            if judged is None:
                raise UserError(f"no sample {sample!r} in {self.target.name()}")
            source = Origin(PEOPLE + person)
            for number in count(1):
                self._look()
                before = self._said.get((sample, source.name), [])
                if before and _says(before[-1]) == feedback:
                    return before[-1]
                own = record_id(sample, source, len(before) + number)
                record = replace(judged.record(feedback, source), id=own)
                if self._journal.append([record]):
                    self._look()
                    return record
                # Another process wrote under this name meanwhile.
        raise AssertionError("numbers do not end")

    def before(self, person: str, sample: str | None = None) -> Sample | None:
        """Return the sample that a person judged last, or last before another one; None where there is none.

        Args:
            person: whose.
            sample: the id of one to go back from.
        """
        with self._lock:
            self._look()
            samples = self.target.samples()
            own = [each for each, source in self._said if source == PEOPLE + person and each in samples]
            if sample in own:
                own = own[: own.index(sample)]
            return samples[own[-1]] if own else None

    def said(self, sample: str) -> dict[str, FeedbackRecord]:
        """Return what counts of what was said of a sample, by the name of each person who did."""
        with self._lock:
            self._look()
            return {
                source.removeprefix(PEOPLE): records[-1]
                for (each, source), records in self._said.items()
                if each == sample and source.startswith(PEOPLE)
            }

    def progress(self, person: str) -> Progress:
        """Return how far everybody is.

        Args:
            person: who asks, and is nobody else.
        """
        with self._lock:
            self._look()
            samples, judged = self.target.samples(), self._judged()
            others = self._leases.of_others(person)
            held = sum(sample in others and sample not in judged for sample in samples)
            return Progress(len(samples), sum(sample in judged for sample in samples), held)

    def keep(self, person: str, sample: str) -> None:
        """Say that a sample is still before a person."""
        self._leases.keep(person, sample)

    def release(self, person: str) -> None:
        """Say that a person has gone."""
        self._leases.release(person)

    def _judged(self) -> set[str]:
        return {sample for sample, source in self._said if source.startswith(PEOPLE)}

    def _look(self) -> None:
        """Take in what was written since the last look, by whomever."""
        if not self._journal.path.exists():
            self._said, self._seen_bytes = {}, 0
            return
        with self._journal.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._seen or status.st_size < self._seen_bytes:
                # The run was begun anew.
                self._said, self._seen, self._seen_bytes = {}, status.st_ino, 0
            file.seek(self._seen_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    record = parse_line(line)
                except BadRecordError:
                    # The whole reading names the line.
                    self._journal.read()
                    raise
                if record is not None:
                    self._take_in(record)
                self._seen_bytes += len(line)

    def _take_in(self, record: FeedbackRecord) -> None:
        sample = sample_id(record)
        if sample is not None:
            key = sample, record.source.name
            self._said[key] = [*self._said.pop(key, []), record]


def _says(record: FeedbackRecord) -> Feedback:
    return Feedback(record.score, record.label, record.feedback, record.correction)

"""Feedback on what was drawn: asked for once, written down as it comes, and looked up ever after."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hf_peft_recipes.errors import SourceError
from hf_peft_recipes.feedback.asking import Policy, Source
from hf_peft_recipes.feedback.journal import Journal
from hf_peft_recipes.feedback.record import BadRecordError, FeedbackRecord, Origin
from hf_peft_recipes.feedback.samples import Sample
from hf_peft_recipes.feedback.verdicts import sample_id
from hf_peft_recipes.rounds.settings import Rounds

PEOPLE = "human"
"""The source that is not asked, but waited for; a person's records are those of `human:name`."""
LIKELIHOOD = "likelihood"
"""The source of a choice that the model made itself, among refinements that nobody judged."""
_FLUSH_SECONDS = 1.0
"""What is known for longer stands on disk."""


@dataclass
class Judged:
    """What is known of some samples."""

    records: dict[str, FeedbackRecord] = field(default_factory=dict)
    """Sample id to its record."""
    failures: dict[str, str] = field(default_factory=dict)
    """Sample id to why the source said nothing of it."""

    def update(self, other: "Judged") -> None:
        """Take up what is known of others."""
        self.records |= other.records
        self.failures |= other.failures


def judge(
    samples: Sequence[Sample], source: Source, policy: Policy | None, journal: Journal, settings: Rounds
) -> Judged:
    """Return the feedback on samples; what the journal has already is not asked for again.

    Args:
        samples: to be judged.
        source: who judges.
        policy: the model that wrote them, for a source that asks it too.
        journal: of the run.
        settings: of the recipe: how many failures are borne.

    Raises:
        SourceError: the source failed, where that is not borne, or more often than `max_failed`.
        UserError: the journal is broken.
    """
    origin = Origin(source.name, source.version)
    found = Judged(known_samples(samples, journal, source))
    pending, written = list[FeedbackRecord](), time.monotonic()
    by_id = {sample.id: sample for sample in samples}
    asked = [sample for sample in samples if sample.id not in found.records]
    try:
        for one, said in source.judge(asked, policy):
            sample = by_id[one.id]
            if isinstance(said, SourceError):
                _bear(found, sample, str(said), settings, len(samples))
                continue
            try:
                record = sample.record(said, origin)
            except BadRecordError as error:
                _bear(found, sample, f"{source.name}: {error}", settings, len(samples))
                continue
            found.records[sample.id] = record
            pending.append(record)
            if time.monotonic() - written > _FLUSH_SECONDS:
                journal.append(pending)
                pending, written = [], time.monotonic()
    finally:
        # Whatever ends it: what was paid for is kept.
        journal.append(pending)
    for sample in asked:
        if source.name != PEOPLE and sample.id not in found.records and sample.id not in found.failures:
            _bear(found, sample, f"{source.name} said nothing", settings, len(samples))
    return found


def known_samples(samples: Sequence[Sample], journal: Journal, source: Source | None) -> dict[str, FeedbackRecord]:
    """Return what the journal says of the samples; of several records by one source the last one counts.

    Args:
        samples: that may stand in it.
        journal: of the run.
        source: who said it, of which another version may judge otherwise; None for the model's own choice.
    """
    wanted = {sample.id for sample in samples}
    found: dict[str, FeedbackRecord] = {}
    for record in journal.read():
        sample = sample_id(record)
        if sample in wanted and _is_by(record, source):
            found[sample] = record
    return found


def _is_by(record: FeedbackRecord, source: Source | None) -> bool:
    if source is None:
        return record.source.name == LIKELIHOOD
    if source.name == PEOPLE:
        return record.source.name.partition(":")[0] == PEOPLE
    return record.source == Origin(source.name, source.version)


def is_accepted(record: FeedbackRecord | None, settings: Rounds) -> bool:
    """Return whether an answer is one to learn from."""
    return record is not None and bool(record.is_accepted(settings.accept))


def _bear(found: Judged, sample: Sample, why: str, settings: Rounds, samples: int) -> None:
    found.failures[sample.id] = why
    if settings.on_error == "error":
        raise SourceError(f"{why} (feedback.on_error: drop goes on without such answers)")
    if len(found.failures) > settings.max_failed * samples:
        raise SourceError(
            f"{len(found.failures)} of {samples} answers got no feedback, more than feedback.max_failed "
            f"{settings.max_failed:.0%}; the last one: {why}"
        )


def tally(why: Mapping[str, str]) -> dict[str, int]:
    """Return how often each reason stands among failures."""
    counts: dict[str, int] = {}
    for reason in why.values():
        counts[reason] = counts.get(reason, 0) + 1
    return counts

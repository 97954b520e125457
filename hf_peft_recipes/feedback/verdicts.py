"""Which record of a sample counts: people change their minds, and a file that only grows keeps all that they said."""

from collections.abc import Iterable

from hf_peft_recipes.feedback.record import FeedbackRecord, Origin

PEOPLE = "human:"
"""What the names of people begin with, where a record says who gave it: `human:ada`."""


def latest(records: Iterable[FeedbackRecord]) -> dict[str, FeedbackRecord]:
    """Return the record that counts of each sample, by the sample's id: the last one, by whomever it is.

    Args:
        records: in the order in which they were written; those that were not made of a sample are left out.
    """
    return {sample: record for record in records if (sample := sample_id(record)) is not None}


def is_by_a_person(record: FeedbackRecord) -> bool:
    """Return whether somebody said it, and no program."""
    return record.source.name.startswith(PEOPLE)


def record_id(sample: str, source: Origin, number: int = 1) -> str:
    """Return the id of what a source says of a sample, for the first time or another.

    Args:
        sample: its id.
        source: of another version it judges anew.
        number: from 1.
    """
    return f"{sample}:{_name(source)}" + (f"#{number}" if number > 1 else "")


def sample_id(record: FeedbackRecord) -> str | None:
    """Return the id of the sample that a record was made of; None where its id is of another making."""
    stem, _, number = record.id.rpartition("#")
    end = f":{_name(record.source)}"
    for told in (record.id, stem if number.isdecimal() else ""):
        if told.endswith(end) and told != end:
            return told.removesuffix(end)
    return None


def _name(source: Origin) -> str:
    return source.name + (f"@{source.version}" if source.version else "")

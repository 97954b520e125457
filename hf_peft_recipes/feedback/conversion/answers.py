"""The answers of each row with all that was said of them, by whomever: what every conversion chooses from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from hf_peft_recipes.feedback.record import FeedbackRecord, Turns, row_id


@dataclass
class Answer:
    """One answer to a row's prompt: a completion or a correction."""

    text: str
    order: int
    """Its place among the answers of its row, as they were first told."""
    is_correction: bool = False
    """Whether somebody wrote it in the place of another answer."""
    votes: list[bool] = field(default_factory=list)
    """Whether it is accepted, by each source that says so; who wrote a correction accepts it."""
    scores: dict[str, float] = field(default_factory=dict)
    """By the source's name, from 0 to 1."""

    @property
    def is_accepted(self) -> bool | None:
        """Whether most accept it; None where as many reject it, or nobody says."""
        balance = sum(1 if vote else -1 for vote in self.votes)
        return None if not balance else balance > 0

    @property
    def is_divided(self) -> bool:
        """Whether as many accept it as reject it."""
        return bool(self.votes) and self.is_accepted is None

    @property
    def score(self) -> float | None:
        """The mean of its scores, None where it has none."""
        return fmean(self.scores.values()) if self.scores else None

    def beats(self, other: "Answer") -> bool:
        """Return whether it has the higher score by the sources that scored both; others have another scale."""
        both = self.scores.keys() & other.scores.keys()
        return bool(both) and sum(self.scores[name] - other.scores[name] for name in both) > 0


@dataclass
class RowAnswers:
    """A row's prompt and its answers."""

    row_id: str
    prompt: Turns
    answers: dict[str, Answer] = field(default_factory=dict)
    """By their text without needless white space, in order."""
    corrected: list[tuple[Answer, Answer]] = field(default_factory=list)
    """A correction, and what it was written in the place of."""
    refined: list[tuple[Answer, Answer]] = field(default_factory=list)
    """A completion, and the one that it refines."""

    def answer(self, text: str) -> Answer:
        """Return the answer of this text, which from now on is one of the row's."""
        return self.answers.setdefault(same_text(text), Answer(text, len(self.answers)))


def same_text(text: str) -> str:
    """Return what two texts have in common that are the same but for white space.

    The indentation of lines stays: in code it has a meaning.
    """
    lines = (line for line in text.strip().split("\n") if line.strip())
    return "\n".join(line[: len(line) - len(line.lstrip())] + " ".join(line.split()) for line in lines)


def latest(records: Iterable[FeedbackRecord]) -> list[FeedbackRecord]:
    """Return of several records of one completion by one source the last: people change their minds.

    A record is known by row, completion (but for white space) and the source's name; a newer version of a program
    takes the place of the older one.

    Args:
        records: in the order in which they were written.
    """
    last = dict[tuple[str, str, str], FeedbackRecord]()
    for record in records:
        # Taken out first, so that it stands where it was written last.
        key = record.row_id, same_text(record.completion), record.source.name
        last.pop(key, None)
        last[key] = record
    return list(last.values())


def is_accepted(record: FeedbackRecord, accept: float) -> bool:
    """Return whether a record accepts its completion: by label, else by score, else by its being left as it was."""
    said = record.is_accepted(accept)
    return same_text(record.correction or "") == same_text(record.completion) if said is None else said


def rows_of(records: Sequence[FeedbackRecord], accept: float) -> list[RowAnswers]:
    """Return the rows with their answers, in order of appearance.

    Args:
        records: in the order in which they were written.
        accept: the least score of an accepted completion.
    """
    rows = dict[tuple[str, str], RowAnswers]()
    for record in latest(records):
        # Whatever the ids say, answers to two prompts are not to be compared.
        row = rows.setdefault((record.row_id, row_id(record.prompt)), RowAnswers(record.row_id, record.prompt))
        answer = row.answer(record.completion)
        answer.votes.append(is_accepted(record, accept))
        if record.score is not None:
            answer.scores[record.source.name] = record.score
        if record.correction is not None and same_text(record.correction) != same_text(record.completion):
            correction = row.answer(record.correction)
            correction.is_correction = True
            correction.votes.append(True)
            row.corrected.append((correction, answer))
    _refine(rows, records)
    return list(rows.values())


def _refine(rows: dict[tuple[str, str], RowAnswers], records: Sequence[FeedbackRecord]) -> None:
    by_id = {record.id: record for record in records}
    for record in records:
        original = by_id.get(record.refines) if record.refines else None
        if original is None:
            continue
        row = rows[record.row_id, row_id(record.prompt)]
        before, after = (row.answers.get(same_text(each.completion)) for each in (original, record))
        if before is not None and after is not None and before is not after:
            row.refined.append((after, before))

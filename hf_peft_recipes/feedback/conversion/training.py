"""Records of feedback to rows that are trained on: `sft`, `dpo`, `kto`. Whatever is left out is counted."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.feedback.conversion.answers import Answer, RowAnswers, latest, rows_of, same_text
from hf_peft_recipes.feedback.record import FeedbackRecord, Turns
from hf_peft_recipes.results import write_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Converted:
    """Rows made of records, and what became of the others."""

    rows: list[Row]
    row_ids: list[str]
    """For each of them, the id of the row that the records were about."""
    records: int
    """How many there were."""
    rows_in: int
    """Rows that the records are about."""
    left_out: Mapping[str, int]
    """What was left out, in words, to how much of it: `rows without an accepted answer`."""

    @property
    def rows_used(self) -> int:
        """The number of rows that gave something."""
        return len(set(self.row_ids))

    def write(self, path: Path) -> None:
        """Write the rows to a file of JSON Lines, all at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows))


def to_sft(records: Sequence[FeedbackRecord], accept: float = 1.0, best_of: int = 1) -> Converted:
    """Return rows of prompt and completion: of every row its best accepted answers.

    Corrections come first, then the higher score, then what was told first. An answer that as many reject as accept is
    not accepted.

    Args:
        records: in the order in which they were written; of several by one source on one completion the last counts.
        accept: the least score, from 0 to 1, of a completion without a label that is accepted.
        best_of: answers of a row, at most.
    """
    made, out = _Made(records), Counter[str]()
    for row in rows_of(records, accept):
        good = _without_empty(_best_first(row), out)
        if not good:
            out[_why_none(row)] += 1
        if len(good) > best_of:
            out["accepted answers that others of their row were taken before"] += len(good) - best_of
        for answer in good[:best_of]:
            made.add(row, completion=answer.text)
    return made.converted(out)


def to_dpo(records: Sequence[FeedbackRecord], accept: float = 1.0, max_pairs: int | None = 1) -> Converted:
    """Return rows of prompt, chosen and rejected: what was judged worse, beside what was judged better.

    Pairs come in this order: a correction with what it corrects; a refinement with what it refines, where it alone is
    accepted or has the higher score; then each other answer that was rejected, or has a lower score by the same source,
    with the best of its row, the worst first. Of two pairs that say the opposite none is taken.

    Args:
        records: as `to_sft` takes them.
        accept: as `to_sft` takes it.
        max_pairs: of one row; None takes all.
    """
    made, out = _Made(records), Counter[str]()
    for row in rows_of(records, accept):
        pairs = list(dict.fromkeys((same_text(one.text), same_text(other.text)) for one, other in _pairs(row)))
        opposite = [pair for pair in pairs if pair[::-1] in pairs]
        out["pairs that contradict each other"] += len(opposite)
        empty = [pair for pair in pairs if not all(pair)]
        out["pairs with an empty answer"] += len(empty)
        good = [pair for pair in pairs if pair not in opposite and pair not in empty]
        if not pairs:
            out["rows with one answer" if len(row.answers) == 1 else "rows whose answers are judged alike"] += 1
        kept = good[:max_pairs]
        out["pairs that others of their row were taken before"] += len(good) - len(kept)
        for chosen, rejected in kept:
            made.add(row, chosen=row.answers[chosen].text, rejected=row.answers[rejected].text)
    return made.converted(out)


def to_kto(records: Sequence[FeedbackRecord], accept: float = 1.0) -> Converted:
    """Return rows of prompt, completion and label: every answer that was judged, a correction as an accepted one.

    The label is what most sources say of it; an answer that as many accept as reject is left out. A completion that was
    corrected, and nothing else said of it, is rejected.

    Args:
        records: as `to_sft` takes them.
        accept: as `to_sft` takes it.
    """
    made, out = _Made(records), Counter[str]()
    for row in rows_of(records, accept):
        for answer in _without_empty(row.answers.values(), out):
            if answer.is_accepted is None:
                out["answers that as many accept as reject"] += 1
            else:
                made.add(row, completion=answer.text, label=answer.is_accepted)
    return made.converted(out)


class _Made:
    """Rows as they are made."""

    def __init__(self, records: Sequence[FeedbackRecord]) -> None:
        self._records = records
        self._rows = list[tuple[RowAnswers, dict[str, str | bool]]]()

    def add(self, row: RowAnswers, **told: str | bool) -> None:
        self._rows.append((row, told))

    def converted(self, out: Counter[str]) -> Converted:
        ids = {record.row_id for record in self._records}
        # One form for all: a column that is text here and a list there is read by few.
        as_turns = any(not _is_text(row.prompt) for row, _ in self._rows)
        rows = [_laid_out(row.prompt, told, as_turns) for row, told in self._rows]
        out["records that a later one of their source replaces"] = len(self._records) - len(latest(self._records))
        left_out = {reason: number for reason, number in out.items() if number}
        return Converted(rows, [row.row_id for row, _ in self._rows], len(self._records), len(ids), left_out)


def prompt_text(prompt: Turns) -> str | None:
    """Return a prompt that is one turn of the user as text, None for any other."""
    return prompt[0]["content"] if _is_text(prompt) else None


def _is_text(prompt: Turns) -> bool:
    return len(prompt) == 1 and prompt[0].keys() == {"role", "content"} and prompt[0]["role"] == "user"


def _laid_out(prompt: Turns, told: Mapping[str, str | bool], as_turns: bool) -> Row:
    if not as_turns:
        return {"prompt": prompt_text(prompt), **told}
    answers = {
        key: [{"role": "assistant", "content": value}] if isinstance(value, str) else value
        for key, value in told.items()
    }
    return {"prompt": [dict(turn) for turn in prompt], **answers}


def _best_first(row: RowAnswers) -> list[Answer]:
    return sorted((answer for answer in row.answers.values() if answer.is_accepted), key=_rank)


def _rank(answer: Answer) -> tuple[bool, float, int]:
    """Return what the better answer has less of."""
    return not answer.is_correction, -_worth(answer), answer.order


def _worth(answer: Answer) -> float:
    """Return the score; what has none is worth as much as its label says."""
    return float(bool(answer.is_accepted)) if answer.score is None else answer.score


def _without_empty(answers: Iterable[Answer], out: Counter[str]) -> list[Answer]:
    told = list(answers)
    full = [answer for answer in told if answer.text.strip()]
    out["answers that are empty"] += len(told) - len(full)
    return full


def _why_none(row: RowAnswers) -> str:
    divided = any(answer.is_divided for answer in row.answers.values())
    return f"rows without an accepted answer{', though some are both accepted and rejected' if divided else ''}"


def _pairs(row: RowAnswers) -> Iterator[tuple[Answer, Answer]]:
    """Yield the better and the worse of all pairs, the most telling first."""
    paired = set[int]()
    own = [
        *((one, other) for one, other in row.corrected if one.is_accepted),
        *((one, other) for one, other in row.refined if _is_better(one, other)),
    ]
    for one, other in own:
        paired.add(other.order)
        yield one, other
    answers = row.answers.values()
    best = [*_best_first(row), *sorted((each for each in answers if not each.is_accepted), key=_rank)]
    for worse in sorted(answers, key=lambda each: (_worth(each), each.order)):
        better = next((each for each in best if _is_better(each, worse)), None)
        if better is not None and worse.order not in paired:
            yield better, worse


def _is_better(one: Answer, other: Answer) -> bool:
    """Return whether one is accepted and the other rejected, or has the higher score by the same sources."""
    if one.is_accepted and other.is_accepted is False:
        return True
    return one.is_accepted == other.is_accepted and one.beats(other)

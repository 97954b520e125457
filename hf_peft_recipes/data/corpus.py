"""The rows of one split, read anew each time they are needed: memory does not grow with their number."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice, pairwise

from hf_peft_recipes.data.formats import BadRowError, Example, Format
from hf_peft_recipes.data.records import Chunk
from hf_peft_recipes.data.workers import in_processes
from hf_peft_recipes.errors import UserError

SHOWN_BAD_ROWS = 10


@dataclass(frozen=True)
class Survey:
    """What one reading of some chunks found."""

    good: list[int]
    """Rows that can be used, for every chunk."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Of the others, why not."""
    shown: list[str] = field(default_factory=list)
    """Place and reason of the first of them."""


@dataclass(frozen=True)
class Corpus:
    """A split whose every row has been looked at once; iterating it gives the rows that can be used, as examples."""

    label: str
    chunks: Sequence[Chunk]
    format: Format
    survey: Survey
    held: frozenset[int] = frozenset()
    """Numbers of usable rows that are set aside, counted from 0."""
    first: int = 0
    """The number of the first usable row."""

    def __len__(self) -> int:
        return self.usable - len(self.held)

    @property
    def usable(self) -> int:
        """The number of usable rows, those that are set aside among them."""
        return sum(self.survey.good)

    def __iter__(self) -> Iterator[Example]:
        return (example for _, example in self.placed())

    def placed(self) -> Iterator[tuple[str, Example]]:
        """Return an iterator over place and example of every row that can be used and is not set aside."""
        return (placed for number, placed in enumerate(self.all_placed(), self.first) if number not in self.held)

    def all_placed(self) -> Iterator[tuple[str, Example]]:
        """Return an iterator over place and example of every row that can be used, those that are set aside too."""
        return ((place, found) for place, found in self.looked() if isinstance(found, Example))

    def looked(self) -> Iterator[tuple[str, Example | str]]:
        """Yield the place of every row, and the example that it is or why it is none."""
        for chunk in self.chunks:
            yield from _understood(chunk, self.format)

    def pick(self, numbers: Sequence[int]) -> list[Example]:
        """Return the usable rows of these numbers, in order, reading no chunk that holds none of them."""
        return [example for _, example in self.pick_placed(numbers)]

    def pick_placed(self, numbers: Sequence[int]) -> list[tuple[str, Example]]:
        """Return place and example of the usable rows of these numbers, as `pick` does."""
        wanted, found = set(numbers), dict[int, tuple[str, Example]]()
        starts = [self.first, *accumulate(self.survey.good, initial=self.first)][1:]
        for chunk, (start, end) in zip(self.chunks, pairwise(starts), strict=True):
            if wanted.isdisjoint(range(start, end)):
                continue
            rows = islice(replace(self, chunks=[chunk]).all_placed(), max(wanted & set(range(start, end))) + 1 - start)
            found |= {number: placed for number, placed in enumerate(rows, start) if number in wanted}
        return [found[number] for number in numbers]

    def parts(self, number: int) -> list["Corpus"]:
        """Return the corpus as so many neighbouring parts, of about as many rows each."""
        starts = [self.first, *accumulate(self.survey.good, initial=self.first)][1:]
        total, parts, begin = starts[-1] - self.first, list[Corpus](), 0
        for part in range(1, number + 1):
            end = next(at for at, start in enumerate(starts) if start - self.first >= total * part / number)
            if end > begin:
                inside = frozenset(held for held in self.held if starts[begin] <= held < starts[end])
                survey = Survey(self.survey.good[begin:end])
                parts.append(
                    replace(self, chunks=self.chunks[begin:end], survey=survey, held=inside, first=starts[begin])
                )
            begin = max(begin, end)
        return parts


def survey_rows(label: str, chunks: Sequence[Chunk], rows_format: Format, drops: bool) -> Corpus:
    """Return the split as a corpus, after one reading of all its rows.

    Args:
        label: what the split is called in messages.
        chunks: its pieces.
        rows_format: what its columns mean.
        drops: whether bad rows are left out and counted, in place of being an error.

    Raises:
        UserError: bad rows, or no good one.
    """
    parts = in_processes(look_at, [(part, rows_format) for part in _halves(chunks)])
    good = [number for part in parts for number in part.good]
    reasons = sum((part.reasons for part in parts), Counter[str]())
    shown = [line for part in parts for line in part.shown][:SHOWN_BAD_ROWS]
    number = reasons.total()
    if number and not drops:
        more = f"; and {number - len(shown)} more" if number > len(shown) else ""
        raise UserError(f"{'; '.join(shown)}{more} ({number} bad rows; `--on_bad_row drop` leaves them out, counted)")
    if not sum(good):
        raise UserError(f"{label}: every row is bad: {shown[0]}" if shown else f"{label}: there are no rows")
    return Corpus(label, chunks, rows_format, Survey(good, reasons, shown))


def look_at(job: tuple[Sequence[Chunk], Format]) -> Survey:
    """Return what one reading of the chunks finds."""
    chunks, rows_format = job
    survey = Survey([])
    for chunk in chunks:
        good = 0
        for place, found in _understood(chunk, rows_format):
            if isinstance(found, Example):
                good += 1
                continue
            survey.reasons[found] += 1
            if len(survey.shown) < SHOWN_BAD_ROWS:
                survey.shown.append(f"{place}: {found}")
        survey.good.append(good)
    return survey


def _understood(chunk: Chunk, rows_format: Format) -> Iterator[tuple[str, Example | str]]:
    """Yield the place of every row, and the example that it is or why it is none."""
    for record in chunk.records():
        if record.row is None:
            yield record.place, record.problem
            continue
        try:
            yield record.place, rows_format.example(record.row)
        except BadRowError as error:
            yield record.place, str(error)


def _halves(chunks: Sequence[Chunk]) -> list[Sequence[Chunk]]:
    """Return the chunks in as many neighbouring pieces as are read side by side."""
    middle = (len(chunks) + 1) // 2
    return [piece for piece in (chunks[:middle], chunks[middle:]) if piece]

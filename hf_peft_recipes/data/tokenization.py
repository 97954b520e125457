"""From a corpus to token rows on disk, with an account in which every row and every token appears."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from hf_peft_recipes.data.corpus import SHOWN_BAD_ROWS, Corpus
from hf_peft_recipes.data.encoders import Maker
from hf_peft_recipes.data.formats import BadRowError, Example
from hf_peft_recipes.data.shapes import SHAPES, Made, Row
from hf_peft_recipes.errors import UserError

Item = TypeVar("Item")

SAME = "the same as a row that was set aside"

_BATCH = 512
"""Examples that are rendered and tokenised at once."""


@dataclass(frozen=True)
class Policy:
    """What becomes of rows that do not fit: the keys of the recipe's `data` section by the same names."""

    max_length: int | None
    overlong: str
    drops: bool
    min_supervised_tokens: int
    shape: str = "text"
    """Of the rows that are made, see `shapes`."""

    @property
    def is_answered(self) -> bool:
        """Whether the model answers itself, so that rows without a token to learn from are the rule."""
        return SHAPES[self.shape].is_answered

    def make(self, renderer: Maker, examples: Sequence[Example]) -> list[Made]:
        """Return what becomes of each example, in order."""
        return SHAPES[self.shape].make(renderer, examples)


@dataclass
class Account:
    """Where the rows and tokens of a corpus went."""

    kept: int = 0
    split: int = 0
    truncated: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Why the others were dropped."""
    shown: list[str] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)
    """Length in tokens of a row that is trained on, to how many there are."""
    supervised: Counter[int] = field(default_factory=Counter)
    """The same of its tokens that carry loss."""
    unstopped: int = 0
    """Rows whose answer ends with no token on which generation stops."""
    same: dict[str, int] = field(default_factory=lambda: {"exact": 0, "normalized": 0})
    """Rows that are rows of a held-out split too."""
    same_shown: list[str] = field(default_factory=list)

    def add(self, other: "Account") -> None:
        """Take the other account's numbers on."""
        self.kept, self.split, self.truncated = (
            self.kept + other.kept, self.split + other.split, self.truncated + other.truncated
        )  # fmt: skip
        self.reasons += other.reasons
        self.lengths += other.lengths
        self.supervised += other.supervised
        self.unstopped += other.unstopped
        self.same = {kind: number + other.same[kind] for kind, number in self.same.items()}
        self.shown = [*self.shown, *other.shown][:SHOWN_BAD_ROWS]
        self.same_shown = [*self.same_shown, *other.same_shown][:SHOWN_BAD_ROWS]

    def ledger(self, max_length: int | None) -> dict[str, Any]:
        """Return the account under the names that it has in `result.json`."""
        return {
            "rows": {
                "kept": self.kept, "split": self.split, "truncated": self.truncated, "dropped": self.reasons.total()
            },
            "tokens": {"total": _sum(self.lengths), "supervised": _sum(self.supervised)},
            "reasons": dict(self.reasons),
            "lengths": _quantiles(self.lengths),
            "supervised_lengths": _quantiles(self.supervised),
            "held_out_duplicates": dict(self.same),
            "max_length": max_length,
        }  # fmt: skip


@dataclass(frozen=True)
class Fingerprints:
    """Held-out examples, told by what they say: exactly, and whatever the case, blanks and punctuation."""

    exact: frozenset[bytes] = frozenset()
    normalized: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Fingerprints":
        """Return those of the examples."""
        # Lines of plain text recur by themselves; an answer that is known is what makes a leak.
        pairs = [_digests(example) for example in examples if example.text is None]
        return cls(frozenset(exact for exact, _ in pairs), frozenset(loose for _, loose in pairs))

    def find(self, example: Example) -> str | None:
        """Return how the example is one of these: `exact`, `normalized`, or not at all."""
        if not self.exact or example.text is not None:
            return None
        exact, loose = _digests(example)
        return "exact" if exact in self.exact else "normalized" if loose in self.normalized else None


@dataclass(frozen=True)
class HeldOut:
    """The rows that are scored: those of splits that the data set has, and those that were set aside here."""

    given: Fingerprints
    """A training row like one of these is a leak."""
    set_aside: Fingerprints
    """A training row like one of these is left out: it was set aside with it."""


Job = tuple[Corpus, Maker, Policy, HeldOut, Path | None]
"""Corpus, renderer, policy, held-out rows, and the file to write; None keeps the token rows."""


def tokenize_part(job: Job) -> tuple[Account, list[Row]]:
    """Return the account of one corpus, with its token rows where no file was named.

    Args:
        job: what to tokenise, and how.

    Raises:
        UserError: rows that cannot be rendered or are too long, where the policy refuses them.
    """
    corpus, renderer, policy, held_out, path = job
    account = Account()
    pieces = _pieces(corpus, renderer, policy, held_out, account)
    rows: list[Row] = []
    if path is None:
        rows = list(pieces)
    else:
        _write(path, pieces, SHAPES[policy.shape].columns)
    number = account.reasons.total()
    if account.shown and not policy.drops:
        more = f"; and more, {number} in all" if number > len(account.shown) else ""
        raise UserError(f"{'; '.join(account.shown)}{more} (`--on_bad_row drop` leaves them out, counted)")
    return account, rows


def _pieces(corpus: Corpus, renderer: Maker, policy: Policy, held_out: HeldOut, account: Account) -> Iterator[Row]:
    """Yield every row that is trained on, entering each example's fate in the account."""
    for placed in _batches(corpus.placed(), _BATCH):
        kept = []
        for place, example in placed:
            if held_out.set_aside.find(example):
                account.reasons[SAME] += 1
                continue
            kept.append((place, example))
            if found := held_out.given.find(example):
                account.same[found] += 1
                account.same_shown = [*account.same_shown, place][:SHOWN_BAD_ROWS]
        for (place, _), made in zip(kept, policy.make(renderer, [example for _, example in kept]), strict=True):
            if isinstance(made, BadRowError):
                account.reasons[str(made)] += 1
                if len(account.shown) < SHOWN_BAD_ROWS:
                    account.shown.append(f"{place}: {made}")
                continue
            for row in made:
                yield from _cut_and_counted(place, row, policy, account)


def entered(
    place: str, found: Example | str, renderer: Maker, policy: Policy, held_out: HeldOut, account: Account
) -> Iterator[Row]:
    """Yield what is trained on of one row of a stream, entering its fate in the account.

    Raises:
        UserError: a bad row, where those are not dropped.
    """
    made = found if isinstance(found, str) else policy.make(renderer, [found])[0]
    if isinstance(made, (str, BadRowError)):
        if not policy.drops:
            raise UserError(f"{place}: {made} (`--on_bad_row drop` leaves bad rows out, counted)")
        account.reasons[str(made)] += 1
    elif isinstance(found, Example) and held_out.set_aside.find(found):
        account.reasons[SAME] += 1
    else:
        for row in made:
            yield from _cut_and_counted(place, row, policy, account)


def _cut_and_counted(place: str, row: Row, policy: Policy, account: Account) -> Iterator[Row]:
    length, limit = row.length, policy.max_length
    too_long = limit is not None and length > limit
    if too_long and policy.overlong == "error":
        raise UserError(f"{place}: the row has {length} tokens and max_length is {limit} (data.overlong: error)")
    if too_long and policy.overlong == "drop":
        account.reasons["too long for max_length"] += 1
        return
    pieces = row.cut(limit, policy.overlong == "split") if limit is not None and too_long else [row]
    counted = [(piece, piece.supervised) for piece in pieces]
    total = sum(number for _, number in counted)
    if not pieces or (total < policy.min_supervised_tokens and not policy.is_answered):
        within = " within max_length" if too_long else ""
        account.reasons[f"fewer than {policy.min_supervised_tokens} tokens to learn from{within}"] += 1
        return
    account.kept += 1
    account.split += too_long and policy.overlong == "split"
    account.truncated += too_long and policy.overlong == "truncate"
    account.unstopped += not row.stops
    for piece, number in counted:
        # A piece of a long prompt teaches nothing, and costs as much as any other.
        if number or policy.is_answered:
            account.lengths[piece.length] += 1
            account.supervised[number] += 1
            yield piece


def _write(path: Path, rows: Iterator[Row], columns: Mapping[str, str]) -> None:
    """Write the rows as an Arrow stream, which `datasets` maps into memory as it is."""
    import pyarrow

    types = {
        "tokens": pyarrow.list_(pyarrow.int32()), "bool": pyarrow.bool_(), "number": pyarrow.int32(),
        "text": pyarrow.string(),
    }  # fmt: skip
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
        for some in _batches(rows, 1000):
            tables = [row.columns() for row in some]
            arrays = [pyarrow.array([row[field.name] for row in tables], field.type) for field in schema]
            stream.write_batch(pyarrow.record_batch(arrays, schema=schema))


def _digests(example: Example) -> tuple[bytes, bytes]:
    said = "\0".join(f"{turn['role']}\1{turn.get('content')}" for turn in example.messages)
    loose = re.sub(r"[\W_]+", " ", said.casefold()).strip()
    exact, normalized = (hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8) for text in (said, loose))
    return exact.digest(), normalized.digest()


def _batches(items: Iterable[Item], number: int) -> Iterator[list[Item]]:
    """Yield the items in lists of so many; itertools has it from Python 3.12 on."""
    iterator = iter(items)
    while some := list(islice(iterator, number)):
        yield some


def _sum(counted: Mapping[int, int]) -> int:
    return sum(length * number for length, number in counted.items())


def _quantiles(counted: Mapping[int, int]) -> dict[str, int]:
    """Return median, 95th percentile and maximum of values that are given with their frequencies."""
    total, seen, found = sum(counted.values()), 0, dict[str, int]()
    ranks = {"median": total // 2, "p95": int(total * 0.95), "max": total - 1}
    for value in sorted(counted):
        seen += counted[value]
        for name, rank in ranks.items():
            if rank < seen:
                found.setdefault(name, value)
    return found

"""The data of one run before any tokenizer is known: every row looked at, split, one data set or several mixed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from hf_peft_recipes.data.cache import cache_key
from hf_peft_recipes.data.columns import by_position
from hf_peft_recipes.data.corpus import Corpus, survey_rows
from hf_peft_recipes.data.formats import Example, detect_format
from hf_peft_recipes.data.sources import Table, read_data
from hf_peft_recipes.errors import UserError, did_you_mean

_PLACES = 8
"""Places of the data from which a sample is taken."""


@dataclass(frozen=True)
class Source:
    """One data set of those that are trained on."""

    name: str
    fingerprint: str
    corpus: Corpus
    weight: float
    """How often each of its rows is seen in an epoch: 2 is twice, 0.5 a random half."""


@dataclass(frozen=True)
class Examples:
    """Data whose rows are all understood."""

    name: str
    format: str
    columns: Mapping[str, str]
    """Role to column, of the first source."""
    fingerprint: str
    sources: tuple[Source, ...]
    validation: list[Example]
    """Watched while training runs."""
    held_out: list[Example]
    """Scored before and after; the same rows as `validation` where the data set has only one held-out split."""
    held_out_split: str
    given: list[Example]
    """Those of the held-out rows that stand in splits of the data set: a training row like one of them is a leak."""
    set_aside: list[Example]
    """And those that were set aside here: training rows like them are left out with them."""
    joins_exactly: bool

    @property
    def train_rows(self) -> int | None:
        """The number of training rows, over all sources; None where that is not known beforehand."""
        return sum(len(source.corpus) for source in self.sources)

    @property
    def usable_rows(self) -> int:
        """The number of rows that `pick` can name: the training rows, and those that were set aside from them."""
        return sum(source.corpus.usable for source in self.sources)

    def sample(self, number: int) -> list[Example]:
        """Return so many of the usable rows, from a few places; all of them where there are fewer."""
        # Neighbours, since a chunk is read as far as the last row that is wanted of it.
        each, rest = divmod(min(number, self.usable_rows), _PLACES)
        starts = [place * self.usable_rows // _PLACES for place in range(_PLACES)]
        wanted = {start + at for start in starts for at in range(each + bool(rest)) if start + at < self.usable_rows}
        return [row for _, row in self.pick(sorted(wanted)[:number])]

    def pick(self, numbers: Sequence[int]) -> list[tuple[str, Example]]:
        """Return place and example of the usable rows of these numbers, counted through all sources from 0."""
        found, first = dict[int, tuple[str, Example]](), 0
        for source in self.sources:
            here = [number for number in numbers if first <= number < first + source.corpus.usable]
            placed = source.corpus.pick_placed([number - first for number in here])
            found |= dict(zip(here, placed, strict=True))
            first += source.corpus.usable
        return [found[number] for number in numbers]


def read_examples(
    section: Mapping[str, Any], held_out_split: str | None, max_rows: int | None, seed: int, dataset: Any = None
) -> Examples:
    """Return the data's rows, every one of them looked at, split into training, validation and held-out.

    Args:
        section: the recipe's `data` section; its `dataset` may be a list, mixed by `weights`.
        held_out_split: the split to score before and after; None takes `test`, else `validation`.
        max_rows: held-out rows to keep of each data set, evenly spaced; None keeps all, 0 none.
        seed: of the split that is made when a data set has no held-out one.
        dataset: an object that the caller has, in place of `section["dataset"]`.

    Raises:
        UserError: a missing, empty or broken file, an unknown split or column, bad rows.
    """
    named = section["dataset"] if dataset is None else dataset
    # A list of rows is one data set, a list of names is several.
    several = isinstance(named, list) and bool(named) and all(isinstance(name, (str, Path)) for name in named)
    names = named if several else [named]
    weights = section.get("weights") or [1.0] * len(names)
    if len(weights) != len(names) or not all(isinstance(weight, (int, float)) and weight > 0 for weight in weights):
        raise UserError(f"data.weights: {weights} is not one number above 0 for each of the {len(names)} data sets")
    parts = [
        _read_one(name, weight, section, held_out_split, max_rows, seed)
        for name, weight in zip(names, weights, strict=True)
    ]
    return parts[0] if len(parts) == 1 else _mixed(parts)


def _read_one(
    dataset: Any, weight: float, section: Mapping[str, Any], held_out_split: str | None, max_rows: int | None, seed: int
) -> Examples:
    columns, templates = section.get("columns") or {}, section.get("format") or {}
    raw = read_data(dataset, headless=by_position(columns))
    train_table = find_split(raw.splits, section["split"], "data.split")
    # Where there is no validation split, the rows that are set aside are one.
    if held_out_split is not None and (held_out_split != "validation" or not section["validation_size"]):
        find_split(raw.splits, held_out_split, "evaluation.split")
    drops = section["on_bad_row"] == "drop"

    def understood(table: Table) -> Corpus:
        found = detect_format(table.columns, columns, table.label, templates, table.first_rows)
        return survey_rows(table.label, table.chunks, found, drops)

    train = understood(train_table)
    check_loss_on(section["loss_on"], train.format.name)
    has = [split for split in ("validation", "test") if split in raw.splits and split != section["split"]]
    name = held_out_split or ("test" if "test" in has else "validation")
    set_aside, given = list[Example](), list[Example]()
    if "validation" in has:
        known = understood(raw.splits["validation"])
        validation = given = _spaced(known, range(len(known)), max_rows)
    else:
        held = _held_out(len(train), section["validation_size"], section["validation_rows"], seed)
        validation = set_aside = _spaced(train, held, max_rows)
        train = replace(train, held=frozenset(held))
    held_out = validation
    if name in raw.splits and name != "validation":
        known = understood(raw.splits[name])
        held_out = _spaced(known, range(len(known)), max_rows)
        given = [*given, *held_out]
    source = Source(raw.name, raw.fingerprint, train, weight)
    return Examples(
        raw.name, train.format.name, train.format.columns, raw.fingerprint, (source,), validation, held_out, name,
        given, set_aside, train.format.joins_exactly,
    )  # fmt: skip


def _mixed(parts: Sequence[Examples]) -> Examples:
    """Return several data sets as one."""
    formats = dict.fromkeys(part.format for part in parts)
    split_names = dict.fromkeys(part.held_out_split for part in parts)
    return Examples(
        " + ".join(part.name for part in parts), " + ".join(formats), parts[0].columns,
        cache_key(*(part.fingerprint for part in parts)), tuple(source for part in parts for source in part.sources),
        [row for part in parts for row in part.validation], [row for part in parts for row in part.held_out],
        " + ".join(split_names), [row for part in parts for row in part.given],
        [row for part in parts for row in part.set_aside], all(part.joins_exactly for part in parts),
    )  # fmt: skip


def find_split(splits: Mapping[str, Table], name: str, origin: str) -> Table:
    """Return the split `name`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in splits:
        raise UserError(
            f"no split {name!r} (from {origin}){did_you_mean(name, splits)} (the data set has {', '.join(splits)})"
        )
    return splits[name]


def check_loss_on(loss_on: str, rows_format: str) -> None:
    """Raise a UserError where `data.loss_on` does nothing for data of this format."""
    nothing = {"text": ("assistant", "last_turn", "completion"), "messages": ("completion",)}
    if loss_on in nothing.get(rows_format, ()):
        raise UserError(
            f"data.loss_on: {loss_on} does nothing for data of the format {rows_format}; leave it out, or see `inspect`"
        )


def _held_out(rows: int, size: float, limit: int | None, seed: int) -> list[int]:
    """Return the numbers of the rows to set aside: at random, but always alike for one seed, whatever is scored."""
    number = min(max(1, round(rows * size)), rows - 1) if size and rows > 1 else 0
    number = number if limit is None else min(number, limit)
    return sorted(random.Random(seed).sample(range(rows), number))


def _spaced(corpus: Corpus, numbers: Sequence[int], limit: int | None) -> list[Example]:
    """Return at most `limit` of the rows, one of each stretch, so that a file sorted by label keeps all its labels.

    It is a row anywhere in its stretch, always the same: of labels that take turns, every nth would be one label only.
    """
    if limit == 0:
        return []
    if limit is not None and limit < len(numbers):
        draw, edges = random.Random(0), [index * len(numbers) // limit for index in range(limit + 1)]
        numbers = [numbers[draw.randrange(first, end)] for first, end in pairwise(edges)]
    return corpus.pick(numbers)

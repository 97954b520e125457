"""Rows tokenised while training runs: the first step comes in seconds, whatever the size of the data.

What that costs: no row has been looked at beforehand, so a bad one stops the run when it is reached (or is dropped and
counted), and the ledger is whole only at the end.

The stream begins anew where the data end. Upstream would do that too, and lose its place there: a run that goes on from
a checkpoint would skip rows of the first pass alone, and what is left of a step at the end of a pass would be added to
the next one's gradient.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

from hf_peft_recipes.data.columns import by_position
from hf_peft_recipes.data.corpus import Corpus, Survey
from hf_peft_recipes.data.encoders import Maker
from hf_peft_recipes.data.formats import Example, detect_format
from hf_peft_recipes.data.preparation import PreparedData, validation_table
from hf_peft_recipes.data.reading import Examples, Source, check_loss_on, find_split
from hf_peft_recipes.data.shapes import SHAPES, Row
from hf_peft_recipes.data.sources import read_data
from hf_peft_recipes.data.tokenization import Account, Fingerprints, HeldOut, Policy, entered
from hf_peft_recipes.errors import UserError

LOOKED_AT = 1000
"""Rows that are read beforehand, for the stop test and for what is set aside."""
_SHUFFLED = 1000
"""Rows among which the next one is drawn, since a stream cannot be shuffled whole."""


class StreamedExamples(Examples):
    """Data of which only the first rows have been looked at."""

    @property
    def train_rows(self) -> None:
        """Not known before the stream ends."""
        return None

    def sample(self, number: int) -> list[Example]:
        """Return the first usable rows."""
        usable = (row for _, row in self.sources[0].corpus.looked() if isinstance(row, Example))
        return list(islice(usable, number))


def read_stream(section: Mapping[str, Any], max_rows: int | None, dataset: Any = None) -> StreamedExamples:
    """Return the data after a look at the first rows; some of them are set aside as held-out rows.

    Args:
        section: the recipe's `data` section.
        max_rows: held-out rows to keep; None keeps all that are set aside, 0 none.
        dataset: an object that the caller has, in place of `section["dataset"]`.

    Raises:
        UserError: several data sets, a missing or empty file, an unknown split or column, a bad row among the first.
    """
    named = section["dataset"] if dataset is None else dataset
    if isinstance(named, list) and named and isinstance(named[0], str):
        raise UserError("data.streaming takes one data set; several are mixed without it")
    columns = section.get("columns") or {}
    raw = read_data(named, headless=by_position(columns), streamed=True)
    table = find_split(raw.splits, section["split"], "data.split")
    found = detect_format(table.columns, columns, table.label, section.get("format") or {}, table.first_rows)
    check_loss_on(section["loss_on"], found.name)
    corpus = Corpus(table.label, table.chunks, found, Survey([0] * len(table.chunks)))
    number = min(section["validation_rows"] or 0, int(LOOKED_AT * section["validation_size"]))
    looked = [placed for placed in islice(corpus.looked(), LOOKED_AT) if isinstance(placed[1], Example)]
    if not looked:
        raise UserError(f"{table.label}: every one of the first {LOOKED_AT} rows is bad")
    number = min(number, len(looked) // 2)
    aside = [example for _, example in looked[:number] if isinstance(example, Example)]
    held_out = aside if max_rows is None else aside[:max_rows]
    streamed = Corpus(table.label, table.chunks, found, corpus.survey, frozenset(range(number)))
    source = Source(raw.name, raw.fingerprint, streamed, 1.0)
    return StreamedExamples(
        raw.name, found.name, found.columns, raw.fingerprint, (source,), held_out, held_out,
        "validation", [], aside, found.joins_exactly,
    )  # fmt: skip


def tokenize_stream(
    examples: StreamedExamples,
    renderer: Maker,
    max_length: int | None,
    section: Mapping[str, Any],
    seed: int,
    shape: str = "text",
) -> PreparedData:
    """Return the rows as a stream of token rows without an end; the ledger fills while they are read the first time.

    Args:
        examples: as `read_stream` returns them.
        renderer: made for the run's tokenizer.
        max_length: tokens a row may have; None for no limit.
        section: the recipe's `data` section.
        seed: of the shuffling.
        shape: of the rows, see `shapes.SHAPES`.
    """
    from datasets import Features, IterableDataset, List, Value

    drops = section["on_bad_row"] == "drop"
    policy = Policy(max_length, section["overlong"], drops, section["min_supervised_tokens"], shape)
    aside = HeldOut(Fingerprints(), Fingerprints.of(examples.set_aside))
    # Upstream looks at the first rows before it trains: whoever reads begins anew, and who came furthest is right.
    accounts = [Account()]

    def once(account: Account) -> Iterator[Row]:
        corpus = examples.sources[0].corpus
        usable = 0
        for place, found in corpus.looked():
            if isinstance(found, Example):
                usable += 1
                if usable - 1 in corpus.held:
                    continue
            yield from entered(place, found, renderer, policy, aside, account)

    def rows() -> Iterator[dict[str, Any]]:
        accounts.append(Account())
        for number in count():
            row, account = None, Account() if number else accounts[-1]
            for row in _shuffled(once(account), random.Random(f"{seed} {number}")):
                yield row.columns()
            if row is None:
                return

    def ledger() -> dict[str, Any]:
        furthest = max(accounts, key=lambda account: account.kept + account.reasons.total())
        return furthest.ledger(max_length) | {"streamed": True}

    types = {"tokens": List(Value("int32")), "bool": Value("bool"), "number": Value("int32"), "text": Value("string")}
    features = Features({name: types[kind] for name, kind in SHAPES[shape].columns.items()})
    stream = IterableDataset.from_generator(rows, features=features)
    validation = validation_table(examples.validation, renderer, policy)
    return PreparedData(stream, validation, examples.held_out, ledger)


def _shuffled(rows: Iterable[Row], draw: random.Random) -> Iterator[Row]:
    """Yield each row once, the next one drawn among so many that are read already."""
    waiting: list[Row] = []
    for row in rows:
        if len(waiting) < _SHUFFLED:
            waiting.append(row)
            continue
        at = draw.randrange(_SHUFFLED)
        waiting[at], row = row, waiting[at]
        yield row
    draw.shuffle(waiting)
    yield from waiting

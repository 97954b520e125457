"""The data of one run: examples by split, then token rows by split, with a ledger in which every row appears."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_peft_recipes.data.formats import BadRowError, Example, detect_format
from hf_peft_recipes.data.rendering import IGNORED, Renderer, TokenRow
from hf_peft_recipes.data.sources import Table, read_data
from hf_peft_recipes.errors import UserError, did_you_mean

SHOWN_BAD_ROWS = 10


@dataclass
class Examples:
    """The rows of a data set, read and understood, before any tokenizer is known."""

    name: str
    format: str
    fingerprint: str
    train: list[Example]
    validation: list[Example]
    """Watched while training runs."""
    held_out: list[Example]
    """Scored before and after; the same rows as `validation` where the data set has only one held-out split."""
    held_out_split: str
    joins_exactly: bool
    dropped: Counter[str] = field(default_factory=Counter)
    """Training rows that were left out, by reason."""


@dataclass
class PreparedData:
    """Token rows to train on, and the account of where every training row went."""

    train: Any
    """A `datasets.Dataset` with `input_ids` and `labels`."""
    validation: Any
    held_out: list[Example]
    ledger: dict[str, Any]


def read_examples(
    section: Mapping[str, Any], held_out_split: str | None, max_rows: int | None, seed: int, dataset: Any = None
) -> Examples:
    """Return the data set's rows as examples, split into training, validation and held-out.

    Args:
        section: the recipe's `data` section.
        held_out_split: the split to score before and after; None takes `test`, else `validation`.
        max_rows: held-out rows to keep, evenly spaced; None keeps all, 0 none.
        seed: of the split that is made when the data set has no held-out one.
        dataset: an object that the caller has, in place of `section["dataset"]`.

    Raises:
        UserError: a missing, empty or broken file, an unknown split or column, bad rows.
    """
    raw = read_data(section["dataset"] if dataset is None else dataset)
    train_table = _split(raw.splits, section["split"], "data.split")
    found = detect_format(train_table.columns, section.get("columns") or {}, train_table.label)
    dropped: Counter[str] = Counter()
    drops = section["on_bad_row"] == "drop"

    def understood(table: Table) -> list[Example]:
        own = detect_format(table.columns, section.get("columns") or {}, table.label)
        return _understand(table, own.example, drops, dropped if table is train_table else Counter())

    train = understood(train_table)
    if held_out_split is not None:
        _split(raw.splits, held_out_split, "evaluation.split")
    has = [split for split in ("validation", "test") if split in raw.splits and split != section["split"]]
    validation = understood(raw.splits["validation"]) if "validation" in has else []
    if not validation:
        train, validation = _hold_out(train, section["validation_size"], section["validation_rows"], seed)
    name = held_out_split or ("test" if "test" in has else "validation")
    held_out = understood(raw.splits[name]) if name in raw.splits and name != "validation" else validation
    return Examples(
        raw.name, found.name, raw.fingerprint, train, _spaced(validation, max_rows), _spaced(held_out, max_rows), name,
        found.joins_exactly, dropped,
    )  # fmt: skip


def tokenize_data(examples: Examples, renderer: Renderer, max_length: int | None, overlong: str) -> PreparedData:
    """Return the examples as token rows, with the ledger of the training rows.

    Args:
        examples: as `read_examples` returns them.
        renderer: made for the run's tokenizer.
        max_length: tokens a row may have; None for no limit.
        overlong: what becomes of longer rows: `split`, `truncate`, `drop` or `error`.

    Raises:
        UserError: rows that cannot be rendered, that are too long under `error`, or no row with a token to learn from.
    """
    from datasets import Dataset

    reasons = Counter(examples.dropped)
    ledger = {"kept": 0, "split": 0, "truncated": 0}
    rows = _rows(examples.train, renderer, max_length, overlong, ledger, reasons)
    if not rows:
        raise UserError(f"data set {examples.name!r}: no row is left to train on ({_counted(reasons)})")
    validation = _rows(examples.validation, renderer, max_length, overlong, Counter(), Counter())
    lengths = sorted(len(row.input_ids) for row in rows)
    account = {
        "rows": {**ledger, "dropped": sum(reasons.values())},
        "tokens": {
            "total": sum(lengths),
            "supervised": sum(label != IGNORED for row in rows for label in row.labels),
        },
        "reasons": dict(reasons),
        "lengths": {
            "median": lengths[len(lengths) // 2],
            "p95": lengths[int(len(lengths) * 0.95)],
            "max": lengths[-1],
        },
        "max_length": max_length,
    }

    def table(token_rows: list[TokenRow]) -> Any:
        columns = {
            "input_ids": [row.input_ids for row in token_rows],
            "labels": [row.labels for row in token_rows],
        }
        return Dataset.from_dict(columns) if token_rows else None

    return PreparedData(table(rows), table(validation), examples.held_out, account)


def _split(splits: Mapping[str, Table], name: str, origin: str) -> Table:
    if name not in splits:
        raise UserError(
            f"no split {name!r} (from {origin}){did_you_mean(name, splits)} (the data set has {', '.join(splits)})"
        )
    return splits[name]


def _understand(table: Table, example: Any, drops: bool, dropped: Counter[str]) -> list[Example]:
    examples, bad = list[Example](), list[str]()
    for index, row in enumerate(table.rows):
        try:
            examples.append(example(row))
        except BadRowError as error:
            bad.append(f"{table.place(index)}: {error}")
            dropped[str(error)] += 1
    if bad and not drops:
        shown = "; ".join(bad[:SHOWN_BAD_ROWS])
        more = f"; and {len(bad) - SHOWN_BAD_ROWS} more" if len(bad) > SHOWN_BAD_ROWS else ""
        raise UserError(f"{shown}{more} ({len(bad)} bad rows; `--on_bad_row drop` leaves them out, counted)")
    if not examples:
        raise UserError(f"{table.label}: every row is bad: {bad[0]}")
    return examples


def _spaced(examples: list[Example], limit: int | None) -> list[Example]:
    """Return at most `limit` examples, evenly spaced, so that a file that is sorted by label keeps all its labels."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[index * len(examples) // limit] for index in range(limit)]


def _hold_out(train: list[Example], size: float, limit: int | None, seed: int) -> tuple[list[Example], list[Example]]:
    """Return `(train, validation)`, split at random but always alike for one seed, whatever is scored later."""
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    number = min(max(1, round(len(train) * size)), len(train) - 1) if size and len(train) > 1 else 0
    number = number if limit is None else min(number, limit)
    held = sorted(order[:number])
    chosen = set(held)
    return [row for index, row in enumerate(train) if index not in chosen], [train[index] for index in held]


def _rows(
    examples: list[Example],
    renderer: Renderer,
    max_length: int | None,
    overlong: str,
    ledger: dict[str, int],
    reasons: Counter[str],
) -> list[TokenRow]:
    rows = []
    for example in examples:
        try:
            row = renderer.row(example)
        except BadRowError as error:
            raise UserError(str(error)) from None
        pieces = _fit(row, max_length, overlong)
        useful = [piece for piece in pieces if any(label != IGNORED for label in piece.labels)]
        if useful:
            ledger["kept"] = ledger.get("kept", 0) + 1
            if len(row.input_ids) > (max_length or len(row.input_ids)):
                fate = "split" if overlong == "split" else "truncated"
                ledger[fate] = ledger.get(fate, 0) + 1
        else:
            reasons["too long for max_length" if not pieces else "no token to learn from within max_length"] += 1
        rows += useful
    return rows


def _fit(row: TokenRow, max_length: int | None, overlong: str) -> list[TokenRow]:
    length = len(row.input_ids)
    if max_length is None or length <= max_length:
        return [row]
    if overlong == "error":
        raise UserError(f"a row has {length} tokens and max_length is {max_length} (data.overlong: error)")
    if overlong == "drop":
        return []
    starts = range(0, length, max_length) if overlong == "split" else [0]
    return [
        TokenRow(row.input_ids[start : start + max_length], row.labels[start : start + max_length]) for start in starts
    ]


def _counted(reasons: Counter[str]) -> str:
    return "; ".join(f"{number} × {reason}" for reason, number in reasons.most_common()) or "it is empty"

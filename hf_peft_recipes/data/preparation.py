"""The data of one run: every row looked at, split, and turned into token rows under an account of where each went."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_peft_recipes.data.cache import cache_key, cached
from hf_peft_recipes.data.columns import by_position
from hf_peft_recipes.data.corpus import Corpus, survey_rows
from hf_peft_recipes.data.formats import Example, detect_format
from hf_peft_recipes.data.rendering import IGNORED, Renderer, TokenRow
from hf_peft_recipes.data.sources import Table, read_data
from hf_peft_recipes.data.tokenization import SAME, Account, Fingerprints, HeldOut, Policy, tokenize_part
from hf_peft_recipes.data.workers import in_processes
from hf_peft_recipes.errors import UserError, did_you_mean

KEPT_IN_MEMORY = 5_000
"""Rows up to which a data set is tokenised anew each time, in memory: that takes about a second."""


@dataclass(frozen=True)
class Examples:
    """A data set whose rows are all understood, before any tokenizer is known."""

    name: str
    format: str
    columns: Mapping[str, str]
    """Role to column."""
    fingerprint: str
    train: Corpus
    validation: list[Example]
    """Watched while training runs."""
    held_out: list[Example]
    """Scored before and after; the same rows as `validation` where the data set has only one held-out split."""
    held_out_split: str
    set_aside: bool
    """Whether the validation rows were set aside here, the data set having none itself."""
    joins_exactly: bool


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
    """Return the data set's rows, every one of them looked at, split into training, validation and held-out.

    Args:
        section: the recipe's `data` section.
        held_out_split: the split to score before and after; None takes `test`, else `validation`.
        max_rows: held-out rows to keep, evenly spaced; None keeps all, 0 none.
        seed: of the split that is made when the data set has no held-out one.
        dataset: an object that the caller has, in place of `section["dataset"]`.

    Raises:
        UserError: a missing, empty or broken file, an unknown split or column, bad rows.
    """
    columns, templates = section.get("columns") or {}, section.get("format") or {}
    raw = read_data(section["dataset"] if dataset is None else dataset, headless=by_position(columns))
    train_table = _split(raw.splits, section["split"], "data.split")
    if held_out_split is not None:
        _split(raw.splits, held_out_split, "evaluation.split")
    drops = section["on_bad_row"] == "drop"

    def understood(table: Table) -> Corpus:
        found = detect_format(table.columns, columns, table.label, templates, table.first_rows)
        return survey_rows(table.label, table.chunks, found, drops)

    train = understood(train_table)
    _check_loss_on(section["loss_on"], train.format.name)
    has = [split for split in ("validation", "test") if split in raw.splits and split != section["split"]]
    name = held_out_split or ("test" if "test" in has else "validation")
    here = "validation" not in has
    if here:
        held = _held_out(len(train), section["validation_size"], section["validation_rows"], seed)
        validation, train = _spaced(train, held, max_rows), replace(train, held=frozenset(held))
    else:
        known = understood(raw.splits["validation"])
        validation = _spaced(known, range(len(known)), max_rows)
    held_out = validation
    if name in raw.splits and name != "validation":
        known = understood(raw.splits[name])
        held_out = _spaced(known, range(len(known)), max_rows)
    return Examples(
        raw.name, train.format.name, train.format.columns, raw.fingerprint, train, validation, held_out, name, here,
        train.format.joins_exactly,
    )  # fmt: skip


def tokenize_data(
    examples: Examples, renderer: Renderer, max_length: int | None, section: Mapping[str, Any]
) -> PreparedData:
    """Return the examples as token rows, with the ledger of the training rows.

    Args:
        examples: as `read_examples` returns them.
        renderer: made for the run's tokenizer.
        max_length: tokens a row may have; None for no limit.
        section: the recipe's `data` section: what becomes of rows that do not fit, and when it is too many.

    Raises:
        UserError: rows that cannot be rendered, more lost rows than allowed, or no row with a token to learn from.
    """
    from datasets import Dataset, concatenate_datasets

    drops = section["on_bad_row"] == "drop"
    policy = Policy(max_length, section["overlong"], drops, section["min_supervised_tokens"])
    known = _known(examples)

    def make(folder: Path | None) -> tuple[Account, list[TokenRow]]:
        parts = examples.train.parts(2) if folder else [examples.train]
        paths = [folder / f"{number}.arrow" if folder else None for number in range(len(parts))]
        jobs = [(part, renderer, policy, known, path) for part, path in zip(parts, paths, strict=True)]
        account, rows = Account(reasons=examples.train.survey.reasons.copy()), list[TokenRow]()
        for part_account, part_rows in in_processes(tokenize_part, jobs):
            account.add(part_account)
            rows += part_rows
        return account, rows

    if len(examples.train) <= KEPT_IN_MEMORY:
        account, rows = make(None)
        train = _table(rows)
    else:
        key = _key(examples, renderer, policy, known)
        account, files = cached(key, lambda folder: make(folder)[0])
        train = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    _check_account(account, examples, section)
    validation = _validation_rows(examples.validation, renderer, policy)
    return PreparedData(train, _table(validation), examples.held_out, account.ledger(max_length))


def _known(examples: Examples) -> HeldOut:
    validation = Fingerprints.of(examples.validation)
    given = Fingerprints.of([] if examples.held_out is examples.validation else examples.held_out)
    if examples.set_aside:
        return HeldOut(given, validation)
    return HeldOut(
        Fingerprints(validation.exact | given.exact, validation.normalized | given.normalized), Fingerprints()
    )


def _table(rows: Sequence[TokenRow]) -> Any:
    from datasets import Dataset

    columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    return Dataset.from_dict(columns) if rows else None


def _split(splits: Mapping[str, Table], name: str, origin: str) -> Table:
    if name not in splits:
        raise UserError(
            f"no split {name!r} (from {origin}){did_you_mean(name, splits)} (the data set has {', '.join(splits)})"
        )
    return splits[name]


def _check_loss_on(loss_on: str, rows_format: str) -> None:
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
    """Return at most `limit` of the rows, evenly spaced, so that a file sorted by label keeps all its labels."""
    if limit is not None and limit < len(numbers):
        numbers = [numbers[index * len(numbers) // limit] for index in range(limit)]
    return corpus.pick(numbers)


def _validation_rows(examples: list[Example], renderer: Renderer, policy: Policy) -> list[TokenRow]:
    """Return the rows whose loss is watched: those that can be rendered, cut as in training."""
    limit = policy.max_length
    rows = [row for row in renderer.rows(examples) if isinstance(row, TokenRow)]
    cut = [TokenRow(row.input_ids[:limit], row.labels[:limit]) for row in rows]
    return [row for row in cut if any(label != IGNORED for label in row.labels)]


def _key(examples: Examples, renderer: Renderer, policy: Policy, known: HeldOut) -> str:
    tokenizer = renderer.tokenizer
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    settings = [renderer.loss_on, renderer.separator, renderer.as_served, renderer.closes, sorted(renderer.stop_ids)]
    held = hashlib.sha256(repr(sorted(examples.train.held)).encode()).hexdigest()
    scored = [hashlib.sha256(b"".join(sorted(part.exact))).hexdigest() for part in (known.given, known.set_aside)]
    return cache_key(
        examples.fingerprint, examples.train.label, repr(examples.train.format), held, scored,
        vocabulary, tokenizer.chat_template, tokenizer.special_tokens_map, settings, repr(policy),
    )  # fmt: skip


def _check_account(account: Account, examples: Examples, section: Mapping[str, Any]) -> None:
    """Raise a UserError where more was lost, cut or leaked than the recipe allows."""
    lost = account.reasons.total() - account.reasons[SAME]
    if not account.kept or not account.lengths:
        raise UserError(f"data set {examples.name!r}: no row is left to train on ({_counted(account)})")
    held_out = max(len(examples.held_out), len(examples.validation), 1)
    shares = {
        "max_dropped": (lost, account.kept + lost, f"rows would be dropped ({_counted(account)})"),
        "max_truncated": (account.truncated, account.kept, "rows would be cut at max_length"),
        "max_leaked": (
            sum(account.same.values()), held_out,
            f"held-out rows stand among the training rows too ({account.same['exact']} word for word, "
            f"{account.same['normalized']} but for case and punctuation; {', '.join(account.same_shown[:3])}): "
            f"their score would be of memory",
        ),
    }  # fmt: skip
    for name, (number, of, told) in shares.items():
        if number > section[name] * of:
            raise UserError(f"data set {examples.name!r}: {number} of {of} {told}; data.{name} is {section[name]:g}")


def _counted(account: Account) -> str:
    return "; ".join(f"{number} × {reason}" for reason, number in account.reasons.most_common()) or "it is empty"

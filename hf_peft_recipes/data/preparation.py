"""Token rows for one run, with an account in which every training row appears."""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.data.cache import ROWS, cache_key, cached
from hf_peft_recipes.data.encoders import Maker
from hf_peft_recipes.data.formats import BadRowError, Example
from hf_peft_recipes.data.reading import Examples, Source
from hf_peft_recipes.data.shapes import Row
from hf_peft_recipes.data.tokenization import SAME, Account, Fingerprints, HeldOut, Policy, tokenize_part
from hf_peft_recipes.data.workers import in_processes
from hf_peft_recipes.errors import UserError

KEPT_IN_MEMORY = 5_000
"""Rows up to which a data set is tokenised anew each time, in memory: that takes about a second."""


@dataclass
class PreparedData:
    """Token rows to train on, and the account of where every training row went."""

    train: Any
    """A `datasets.Dataset` with the columns of `shapes.SHAPES`."""
    validation: Any
    held_out: list[Example]
    ledger: Callable[[], dict[str, Any]]
    """The account as it stands: of a stream it is whole only at the end."""


def tokenize_data(
    examples: Examples,
    renderer: Maker,
    max_length: int | None,
    section: Mapping[str, Any],
    seed: int = 0,
    shape: str = "text",
) -> PreparedData:
    """Return the examples as token rows, with the ledger of the training rows.

    Args:
        examples: as `read_examples` returns them.
        renderer: made for the run's tokenizer.
        max_length: tokens a row may have; None for no limit.
        section: the recipe's `data` section: what becomes of rows that do not fit, and when it is too many.
        seed: of the choice of rows where a weight is no whole number.
        shape: of the rows, see `shapes.SHAPES`.

    Raises:
        UserError: rows that cannot be rendered, more lost rows than allowed, or no row with a token to learn from.
    """
    from datasets import concatenate_datasets

    drops = section["on_bad_row"] == "drop"
    policy = Policy(max_length, section["overlong"], drops, section["min_supervised_tokens"], shape)
    held_out = HeldOut(Fingerprints.of(examples.given), Fingerprints.of(examples.set_aside))
    whole, tables, told = Account(), [], []
    for source in examples.sources:
        account, table = _tokenized(source, renderer, policy, held_out)
        whole.add(account)
        if table is not None:
            tables.append(_weighted(table, source.weight, seed))
        own = account.ledger(max_length)
        told.append({"dataset": source.name, "weight": source.weight} | {key: own[key] for key in _TOLD})
    _check_account(whole, examples, section)
    ledger = {**whole.ledger(max_length), "sources": told}
    validation = validation_table(examples.validation, renderer, policy)
    return PreparedData(concatenate_datasets(tables), validation, examples.held_out, lambda: ledger)


_TOLD = ("rows", "tokens", "reasons")
"""What the ledger tells of each source apart."""


def _tokenized(source: Source, renderer: Maker, policy: Policy, held_out: HeldOut) -> tuple[Account, Any]:
    """Return the account of one source, and its token rows as a `datasets.Dataset`, None where no row is left."""
    from datasets import Dataset, concatenate_datasets

    corpus = source.corpus

    def make(folder: Path | None) -> tuple[Account, list[Row]]:
        parts = corpus.parts(2) if folder else [corpus]
        paths = [folder / f"{ROWS}{number}.arrow" if folder else None for number in range(len(parts))]
        jobs = [(part, renderer, policy, held_out, path) for part, path in zip(parts, paths, strict=True)]
        account, rows = Account(reasons=corpus.survey.reasons.copy()), list[Row]()
        for part_account, part_rows in in_processes(tokenize_part, jobs):
            account.add(part_account)
            rows += part_rows
        return account, rows

    if len(corpus) <= KEPT_IN_MEMORY:
        account, rows = make(None)
        return account, _table(rows)
    key = _key(source, renderer, policy, held_out)
    account, files = cached(key, lambda folder: make(folder)[0])
    return account, concatenate_datasets([Dataset.from_file(str(file)) for file in files]) if account.lengths else None


def _weighted(table: Any, weight: float, seed: int) -> Any:
    """Return the rows as often as the weight says; of what is no whole number, a random share."""
    from datasets import concatenate_datasets

    times, share = int(weight), round((weight % 1) * len(table))
    if (times, share) == (1, 0):
        return table
    some = [table.select(sorted(random.Random(seed).sample(range(len(table)), share)))] if share else []
    return concatenate_datasets([table] * times + some)


def _table(rows: Sequence[Row]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([row.columns() for row in rows]) if rows else None


def validation_table(examples: Sequence[Example], renderer: Maker, policy: Policy) -> Any:
    """Return the rows whose loss is watched: those that can be rendered, cut as in training, or None."""
    limit = policy.max_length
    rows = [row for made in policy.make(renderer, examples) if not isinstance(made, BadRowError) for row in made]
    cut = [piece for row in rows for piece in ([row] if limit is None else row.cut(limit, False))]
    return _table([row for row in cut if row.supervised or policy.is_answered])


def _key(source: Source, renderer: Maker, policy: Policy, known: HeldOut) -> str:
    corpus = source.corpus
    tokenizer = renderer.tokenizer
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    settings = [
        renderer.labels,
        renderer.loss_on,
        renderer.separator,
        renderer.as_served,
        renderer.closes,
        sorted(renderer.stop_ids),
    ]
    held = hashlib.sha256(repr(sorted(corpus.held)).encode()).hexdigest()
    scored = [hashlib.sha256(b"".join(sorted(part.exact))).hexdigest() for part in (known.given, known.set_aside)]
    return cache_key(
        source.fingerprint, corpus.label, repr(corpus.format), held, scored,
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

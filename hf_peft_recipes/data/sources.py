"""Where rows come from: a file, a folder, a `datasets` object or a Hub id, as tables of chunks that are read later."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from hf_peft_recipes.data.columnar import row_chunks
from hf_peft_recipes.data.folders import LABELS, canonical_splits, files_by_split
from hf_peft_recipes.data.readers import file_chunks, file_type, labelled_chunks
from hf_peft_recipes.data.records import Chunk, Record, Row
from hf_peft_recipes.embedded import DATA_DIR, Demo
from hf_peft_recipes.errors import UserError, did_you_mean

FIRST_ROWS = 100
"""Rows that a table's columns are taken from."""

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?(@\S+)?")
_LONGEST_SHOWN = 120

DEMO = "embedded demo"
"""What the embedded data are called."""


@dataclass(frozen=True)
class Table:
    """The rows of one split: chunks to read them from, and what the first of them look like."""

    label: str
    """What the table is called in messages."""
    chunks: tuple[Chunk, ...]
    columns: tuple[str, ...]
    """The names of the columns, in order of appearance in the first good rows."""
    first_rows: tuple[Row, ...] = ()
    """Some of those rows, for telling formats apart that have the same columns."""

    def records(self) -> Iterator[Record]:
        """Return an iterator over all records, in order, from the beginning at every call."""
        return chain.from_iterable(chunk.records() for chunk in self.chunks)


@dataclass(frozen=True)
class RawData:
    """A data set before its rows are understood: one table a split."""

    name: str
    splits: dict[str, Table]
    fingerprint: str
    """sha256 over the names and bytes of the files, or the fingerprint that `datasets` keeps."""


def read_data(dataset: Any, headless: bool = False, streamed: bool = False) -> RawData:
    """Return the tables of `dataset`, by split. Files are passed over once; their rows are read from the chunks.

    Args:
        dataset: None for the embedded demo; a file or a folder; a Hub id with an optional `@revision`; a
            `datasets.Dataset`, `IterableDataset` or `DatasetDict`; a list of rows, or a mapping of splits to such.
        streamed: files are not passed over; they are told by name, size and time of change, not by their bytes.
        headless: CSV and TSV files have no head, their columns are called 1, 2, 3 …; see `columns.by_position`.

    Raises:
        UserError: nothing there, an empty or broken file, a file type that is not known, no row that can be read.
    """
    if dataset is None:
        return _from_files(DEMO, files_by_split(DATA_DIR), headless, streamed)
    if isinstance(dataset, Demo):
        return _from_object(dataset.splits, DEMO)
    if not isinstance(dataset, (str, Path)):
        return _from_object(dataset, type(dataset).__name__)
    if not str(dataset).strip():
        raise UserError("the data set's name is empty; a file, a folder or a Hub id is wanted")
    try:
        path = Path(dataset).expanduser()
        files = files_by_split(path) if path.is_dir() else {"train": [path]} if path.is_file() else None
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"data set {_shown(dataset)} cannot be read: {reason}") from None
    if files is not None:
        return _from_files(str(path), files, headless, streamed)
    # A Hub id is `name` or `user/name`; what has a suffix or more slashes can only have been meant as a path.
    meant_as_path = file_type(path) or path.is_absolute() or str(dataset).startswith((".", "~"))
    if meant_as_path or str(dataset).split("@")[0].count("/") > 1:
        raise UserError(f"data set {_shown(dataset)}: no such file or folder{did_you_mean(path.name, near)}")
    if not _HUB_ID.fullmatch(str(dataset)):
        raise UserError(f"data set {_shown(dataset)}: no such file or folder, and no Hub id (user/name, or name)")
    return _from_hub(str(dataset), near)


def _shown(dataset: Any) -> str:
    text = str(dataset)
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")


def _from_files(name: str, files: Mapping[str, Sequence[Path]], headless: bool, streamed: bool) -> RawData:
    digest = hashlib.sha256()
    tables: dict[str, Table] = {}
    for split, paths in canonical_splits(files).items():
        chunks = list[Chunk]()
        for path in paths:
            if not path.stat().st_size:
                raise UserError(f"data file {str(path)!r} is empty")
            digest.update(path.name.encode(errors="surrogateescape"))
            made = labelled_chunks(path, digest) if split == LABELS else file_chunks(path, digest, headless)
            if split == LABELS and not any(True for chunk in made for _ in chunk.records()):
                raise UserError(f"data file {str(path)!r} is empty")
            chunks += made
        if split == LABELS:
            split, label, empty = "train", paths[0].parent.name, f"data set {str(paths[0].parent)!r}"
        elif len(paths) == 1:
            label, empty = paths[0].name, f"data file {str(paths[0])!r}"
        else:
            label, empty = f"split {split!r}", f"split {split!r} of data set {name!r}"
        tables[split] = _table(label, chunks, empty)
    return RawData(name, tables, f"sha256:{digest.hexdigest()}")


def _table(label: str, chunks: Sequence[Chunk], called_when_empty: str, columns: Sequence[str] = ()) -> Table:
    first_rows, problem = list[Row](), None
    for record in chain.from_iterable(chunk.records() for chunk in chunks):
        if record.row is None:
            problem = problem or record
        else:
            first_rows.append(record.row)
            if len(first_rows) == FIRST_ROWS:
                break
    if not first_rows:
        if problem:
            raise UserError(f"{problem.place}: {problem.problem} (and no row of {label} can be read)")
        raise UserError(f"{called_when_empty} is empty")
    named = columns or list(dict.fromkeys(str(key) for row in first_rows for key in row))
    return Table(label, tuple(chunks), tuple(named), tuple(first_rows))


def _from_object(dataset: Any, name: str) -> RawData:
    if isinstance(dataset, Mapping):
        splits = canonical_splits(dataset)
    elif hasattr(dataset, "column_names") or _is_rows(dataset):
        splits = {"train": dataset}
    else:
        raise UserError(f"a data set is a path, a Hub id, a datasets object or rows, not {type(dataset).__name__}")
    if not splits:
        raise UserError("the data set has no splits")
    tables = {}
    for split, rows in splits.items():
        if not hasattr(rows, "column_names") and not _is_rows(rows):
            raise UserError(f"the split {split!r} is {type(rows).__name__}; rows or a datasets object are wanted")
        label = f"split {split!r}"
        columns = getattr(rows, "column_names", None) or ()
        tables[split] = _table(label, row_chunks(rows, label), f"the split {split!r} of the data set", columns)
    return RawData(name, tables, _object_fingerprint(splits, tables))


def _is_rows(rows: Any) -> bool:
    return isinstance(rows, Sequence) and not isinstance(rows, (str, bytes))


def _object_fingerprint(splits: Mapping[str, Any], tables: Mapping[str, Table]) -> str:
    kept = [str(getattr(rows, "_fingerprint", "")) for rows in splits.values()]
    if all(kept):
        return "datasets:" + "+".join(kept)
    # What a stream will give is not known before it is read; its first rows are what there is to tell it by.
    streams = [not hasattr(rows, "__len__") for rows in splits.values()]
    digest = hashlib.sha256()
    for (split, table), stream in zip(tables.items(), streams, strict=True):
        rows = table.first_rows if stream else (record.row for record in table.records())
        for row in rows:
            digest.update(json.dumps([split, row], sort_keys=True, default=str).encode())
    return f"{'first-rows-' if any(streams) else ''}sha256:{digest.hexdigest()}"


def _from_hub(name: str, near: Sequence[str]) -> RawData:
    from datasets import load_dataset_builder

    repository, _, revision = name.partition("@")
    try:
        commit = _commit(repository, revision) if revision else None
        builder = load_dataset_builder(repository, revision=commit or revision or None)
        # Where it cannot ask the Hub, `datasets` takes the newest that it has cached, whatever the revision.
        wanted = not revision or builder.hash == commit
        if wanted:
            builder.download_and_prepare()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"data set {name!r}: neither a file or folder here{did_you_mean(name, near)} nor loadable from the Hub: "
            f"{reason}"
        ) from None
    if not wanted:
        raise UserError(
            f"data set {name!r}: the Hub cannot be asked for that revision, and what is cached is another one, "
            f"{builder.hash}"
        )
    return _from_object(builder.as_dataset(), name)


def _commit(repository: str, revision: str) -> str | None:
    """Return the commit that a revision means to the Hub, or meant when it was last asked; None where neither tells."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().resolve_revision(repository, revision=revision, repo_type="dataset").resolved)
    except Exception:
        return None  # Loading fails for the same reason, and has better words for it.

"""Where rows come from: a file, a folder, a `datasets` object or a Hub id, read to tables of rows with their places."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.embedded import DATA_DIR
from hf_peft_recipes.errors import UserError, did_you_mean

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
}
"""File stem to split."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """The rows of one split, and where each stands."""

    rows: Sequence[Row]
    places: Sequence[str] | None
    """`chats.jsonl:1042` for every row; None when the rows are those of a `datasets` object."""
    label: str

    def place(self, index: int) -> str:
        """Return where row `index` stands, for messages."""
        return self.places[index] if self.places else f"row {index} of {self.label}"

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order of appearance in the first rows."""
        names = getattr(self.rows, "column_names", None)
        return list(names) if names else list(dict.fromkeys(key for row in self.rows[:100] for key in row))


@dataclass(frozen=True)
class RawData:
    """A data set as it was read: one table a split."""

    name: str
    splits: dict[str, Table]
    fingerprint: str
    """sha256 over the bytes of the files, or the fingerprint that `datasets` keeps."""


def read_data(dataset: Any) -> RawData:
    """Return the rows of `dataset`, by split.

    Args:
        dataset: None for the embedded demo; a path; a Hub id with an optional `@revision`; a `datasets.Dataset` or
            `DatasetDict`; a list of rows, or a mapping of split names to lists of rows.

    Raises:
        UserError: nothing there, an empty or broken file, a file type that is not known.
    """
    if dataset is None:
        return _read_folder(DATA_DIR, "embedded demo")
    if not isinstance(dataset, (str, Path)):
        return _from_object(dataset)
    path = Path(dataset).expanduser()
    if path.is_dir():
        return _read_folder(path, str(path))
    if path.is_file():
        return RawData(str(path), {"train": _read_file(path)}, _fingerprint([path]))
    # A Hub id is `name` or `user/name`; what has a suffix or more slashes can only have been meant as a path.
    if path.suffix in _READERS or path.is_absolute() or str(dataset).startswith(".") or str(dataset).count("/") > 1:
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"data set {str(dataset)!r}: no such file or folder{did_you_mean(path.name, near)}")
    return _from_hub(str(dataset))


def _read_folder(folder: Path, name: str) -> RawData:
    files = sorted(entry for entry in folder.iterdir() if entry.suffix in _READERS)
    if not files:
        raise UserError(f"data set {str(folder)!r}: no file in the folder ends in {', '.join(_READERS)}")
    by_split = {SPLIT_NAMES[file.stem.lower()]: file for file in files if file.stem.lower() in SPLIT_NAMES}
    if by_split:
        if "train" not in by_split:
            raise UserError(f"data set {str(folder)!r}: no training file among {', '.join(f.name for f in files)}")
        return RawData(name, {split: _read_file(file) for split, file in by_split.items()}, _fingerprint(files))
    if all(file.suffix == ".txt" for file in files) and len(files) > 1:
        return RawData(name, {"train": _read_label_files(files)}, _fingerprint(files))
    if len(files) == 1:
        return RawData(name, {"train": _read_file(files[0])}, _fingerprint(files))
    raise UserError(
        f"data set {str(folder)!r}: which file is which? Name them train, validation and test, or give one text file "
        f"a label; found {', '.join(file.name for file in files)}"
    )


def _read_label_files(files: list[Path]) -> Table:
    rows, places = list[Row](), list[str]()
    for file in files:
        for number, line in enumerate(_text(file).splitlines(), 1):
            if line.strip():
                rows.append({"text": line.strip(), "label": file.stem})
                places.append(f"{file.name}:{number}")
    return Table(rows, places, files[0].parent.name)


def _read_file(path: Path) -> Table:
    if path.suffix not in _READERS:
        raise UserError(f"data file {str(path)!r}: {path.suffix or 'no suffix'} is not among {', '.join(_READERS)}")
    rows, places = list[Row](), list[str]()
    for line, row in _READERS[path.suffix](path):
        if not isinstance(row, Mapping):
            raise UserError(f"{path.name}:{line}: a row is a mapping of columns to values, not {type(row).__name__}")
        rows.append(row)
        places.append(f"{path.name}:{line}")
    if not rows:
        raise UserError(f"data file {str(path)!r} is empty")
    return Table(rows, places, path.name)


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path.name}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); convert the file") from None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"column {twice!r} stands twice")
    return row


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): JSON strings may hold U+2028 and its kin, which are no line ends there.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=_refuse_duplicates)
            except ValueError as error:
                raise UserError(f"{path.name}:{number}: broken JSON: {error}") from None


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        content = json.loads(_text(path), object_pairs_hook=_refuse_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"{path.name}:{error.lineno}: broken JSON: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path.name}: broken JSON: {error}") from None
    if isinstance(content, Mapping) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise UserError(f"{path.name}: a list of rows is wanted at the top level")
    yield from enumerate(content, 1)


def _delimited(delimiter: str) -> Any:
    def read(path: Path) -> Iterator[tuple[int, Any]]:
        reader = csv.DictReader(_text(path).splitlines(keepends=True), delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{path.name}:{reader.line_num}: the row has another number of fields than the head"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{path.name}:{reader.line_num}: {error}") from None

    return read


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            yield number, {"text": line}


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _delimited(","), ".tsv": _delimited("\t"), ".txt": _lines}


def _fingerprint(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _from_object(dataset: Any) -> RawData:
    if isinstance(dataset, Mapping):
        splits = dict(dataset)
    elif hasattr(dataset, "column_names") or isinstance(dataset, Sequence):
        splits = {"train": dataset}
    else:
        raise UserError(f"a data set is a path, a Hub id, a datasets object or rows, not {type(dataset).__name__}")
    for split, rows in splits.items():
        if not hasattr(rows, "__len__"):
            raise UserError(f"the split {split!r} is a stream without a length; pass a datasets.Dataset")
        if not len(rows):
            raise UserError(f"the split {split!r} of the data set is empty")
    kept = [str(getattr(rows, "_fingerprint", "")) for rows in splits.values()]
    fingerprint = "datasets:" + "+".join(kept) if all(kept) else _rows_fingerprint(splits)
    tables = {SPLIT_NAMES.get(split, split): Table(rows, None, f"split {split!r}") for split, rows in splits.items()}
    return RawData(type(dataset).__name__, tables, fingerprint)


def _rows_fingerprint(splits: Mapping[str, Sequence[Row]]) -> str:
    digest = hashlib.sha256()
    for split, rows in splits.items():
        for row in rows:
            digest.update(json.dumps([split, row], sort_keys=True, default=str).encode())
    return f"sha256:{digest.hexdigest()}"


def _from_hub(name: str) -> RawData:
    from datasets import load_dataset

    repository, _, revision = name.partition("@")
    try:
        loaded = load_dataset(repository, revision=revision or None)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"data set {name!r}: neither a file or folder here nor loadable from the Hub: {reason}"
        ) from None
    raw = _from_object(loaded)
    return RawData(name, raw.splits, raw.fingerprint)

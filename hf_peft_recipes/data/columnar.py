"""Parquet and Arrow files, `datasets` objects and lists of rows to records. Class numbers become the classes' names."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from hf_peft_recipes.data.records import Record, Row, record
from hf_peft_recipes.errors import UserError

BATCH_ROWS = 1000
"""Rows that are turned into Python objects at a time."""

_BATCHES_A_CHUNK = 16
"""Record batches of an Arrow stream in one chunk; each chunk has to skip those before it, so few chunks are better."""


@dataclass(frozen=True)
class ParquetChunk:
    """One row group of a Parquet file."""

    path: Path
    group: int
    first_row: int
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def records(self) -> Iterator[Record]:
        """Return an iterator over the group's rows.

        Raises:
            UserError: the file is broken.
        """
        import pyarrow.parquet as pq

        first = self.first_row
        with _arrow_errors(self.path), pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[self.group]):
                yield from _batch_records(batch, self.path.name, first, self.classes)
                first += batch.num_rows


@dataclass(frozen=True)
class ArrowChunk:
    """Some record batches of an Arrow file or stream."""

    path: Path
    first_batch: int
    first_row: int
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def records(self) -> Iterator[Record]:
        """Return an iterator over the batches' rows.

        Raises:
            UserError: the file is broken.
        """
        first = self.first_row
        for number, batch in enumerate(_batches(self.path)):
            if number >= self.first_batch + _BATCHES_A_CHUNK:
                return
            if number >= self.first_batch:
                yield from _batch_records(batch, self.path.name, first, self.classes)
                first += batch.num_rows


@dataclass(frozen=True)
class RowsChunk:
    """A run of rows of a list or of a `datasets.Dataset`; pickling takes along those rows only."""

    rows: Any
    start: int
    stop: int
    label: str
    offset: int = 0
    """Rows before the first of `rows`, for places."""
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def records(self) -> Iterator[Record]:
        """Return an iterator over the rows."""
        for index, row in enumerate(self._picked(), self.start + self.offset):
            yield record(f"row {index} of {self.label}", _named(row, self.classes))

    def __reduce__(self) -> tuple[Any, ...]:
        # A data set in files is pickled as their names; one in memory whole, whatever part of it is selected.
        in_files = getattr(self.rows, "cache_files", None) and getattr(self.rows, "_indices", None) is None
        rows = self.rows.select(range(self.start, self.stop)) if in_files else self._picked()
        return RowsChunk, (rows, 0, self.stop - self.start, self.label, self.offset + self.start, self.classes)

    def _picked(self) -> list[Any]:
        if not hasattr(self.rows, "column_names"):
            return [self.rows[index] for index in range(self.start, self.stop)]
        # A Dataset gives a slice as a list a column, many times faster than one row after the other.
        columns = self.rows[self.start : self.stop]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@dataclass(frozen=True)
class StreamChunk:
    """A `datasets.IterableDataset`, which can only be read from its beginning."""

    rows: Any
    label: str
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def records(self) -> Iterator[Record]:
        """Return an iterator over the rows."""
        for index, row in enumerate(self.rows):
            yield record(f"row {index} of {self.label}", _named(row, self.classes))


def parquet_chunks(path: Path) -> list[ParquetChunk]:
    """Return a chunk for each row group of the file.

    Raises:
        UserError: the file is no Parquet or is cut short; a column stands twice.
    """
    import pyarrow.parquet as pq

    with _arrow_errors(path), pq.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    classes = _schema_classes(schema, path)
    return [ParquetChunk(path, group, first, classes) for group, first in enumerate(accumulate(sizes[:-1], initial=0))]


def arrow_chunks(path: Path) -> list[ArrowChunk]:
    """Return chunks of record batches of an Arrow file, in the file or the stream format (`datasets` writes streams).

    Raises:
        UserError: the file is no Arrow or is cut short; a column stands twice.
    """
    chunks, first_row, classes = list[ArrowChunk](), 0, dict[str, Sequence[str]]()
    for number, batch in enumerate(_batches(path)):
        if number == 0:
            classes = _schema_classes(batch.schema, path)
        if number % _BATCHES_A_CHUNK == 0:
            chunks.append(ArrowChunk(path, number, first_row, classes))
        first_row += batch.num_rows
    return chunks


def row_chunks(rows: Any, label: str) -> list[RowsChunk] | list[StreamChunk]:
    """Return chunks of a list of rows, a `datasets.Dataset` or a `datasets.IterableDataset`.

    Args:
        rows: the rows.
        label: what they are called in places: `split 'train'`.
    """
    classes = _feature_classes(getattr(rows, "features", None))
    # What a user's set_format would make of the values (tensors, mostly) is nothing to tokenize; a transform is his.
    if hasattr(rows, "with_format") and getattr(rows, "format", {}).get("type") not in (None, "custom"):
        rows = rows.with_format(None)
    if not hasattr(rows, "__len__"):
        return [StreamChunk(rows, label, classes)]
    starts = range(0, len(rows), BATCH_ROWS)
    return [RowsChunk(rows, start, min(start + BATCH_ROWS, len(rows)), label, classes=classes) for start in starts]


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with _arrow_errors(path), pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            source.seek(0)
            yield from pa.ipc.open_stream(source)


def _batch_records(batch: Any, name: str, first: int, classes: Mapping[str, Sequence[str]]) -> Iterator[Record]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        part = batch.slice(start, BATCH_ROWS)
        try:
            rows = part.to_pylist()
        except ValueError:
            # One value of the part cannot be had in Python (text that is not UTF-8): find the rows that can.
            rows = [_row_or_problem(part.slice(index, 1)) for index in range(part.num_rows)]
        for index, row in enumerate(rows, first + start):
            place = f"{name}:row {index}"
            yield Record(place, None, row) if isinstance(row, str) else Record(place, _named(row, classes))


def _row_or_problem(part: Any) -> Row | str:
    try:
        return part.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte 0x{error.object[error.start]:02x})"
    except ValueError as error:
        return str(error).splitlines()[0]


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path.name}: cannot be read as {path.suffix.lower().lstrip('.')}: {reason}") from None


def _schema_classes(schema: Any, path: Path) -> dict[str, Sequence[str]]:
    """Return the class names that `datasets` leaves in a file's schema, by column."""
    names = list(schema.names)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path.name}: column {twice[0]!r} stands twice")
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return _feature_classes(features)


def _feature_classes(features: Any) -> dict[str, Sequence[str]]:
    found = dict[str, Sequence[str]]()
    for column, feature in features.items() if isinstance(features, Mapping) else ():
        inner = (
            feature.get("feature", feature) if isinstance(feature, Mapping) else getattr(feature, "feature", feature)
        )
        names = inner.get("names") if isinstance(inner, Mapping) else getattr(inner, "names", None)
        if isinstance(names, list):
            found[column] = names
    return found


def _named(row: Any, classes: Mapping[str, Sequence[str]]) -> Any:
    if not classes or not isinstance(row, Mapping):
        return row
    return {
        column: _class_name(value, classes[column]) if column in classes else value for column, value in row.items()
    }


def _class_name(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_class_name(each, names) for each in value]
    if isinstance(value, int) and not isinstance(value, bool):
        # -1 is how `datasets` writes a label that is not known.
        return names[value] if 0 <= value < len(names) else None
    return value

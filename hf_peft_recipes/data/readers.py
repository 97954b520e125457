"""File types: each file becomes chunks that can be read apart, in any process, in constant memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.data.columnar import arrow_chunks, parquet_chunks
from hf_peft_recipes.data.delimited import csv_chunks, tsv_chunks
from hf_peft_recipes.data.json_rows import JsonChunk, is_json_lines, line_record
from hf_peft_recipes.data.records import Chunk, Record, opened, text_problem
from hf_peft_recipes.errors import UserError, did_you_mean

__all__ = ["READERS", "Chunk", "Record", "file_chunks", "file_type", "labelled_chunks"]

CHUNK_BYTES = 4 * 1024 * 1024
"""About what one chunk of a file of lines holds; chunks end where lines end."""

_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


@dataclass(frozen=True)
class LineChunk:
    """A range of bytes of a file that has one row a line."""

    path: Path
    kind: str
    """`jsonl` or `txt`."""
    start: int = 0
    stop: int | None = None
    """None: all of the file, streamed, which is what packed files allow."""
    first_line: int = 1
    label: str | None = None
    """The value of a column `label` that every line of plain text gets."""

    def records(self) -> Iterator[Record]:
        """Return an iterator over the records of all lines that are not blank.

        Raises:
            UserError: the file is shorter than it was, or cannot be read.
        """
        name = self.path.name
        for number, line in self._lines():
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if number == 1:
                line = line.removeprefix(_BOM)
            place = f"{name}:{number}"
            made = line_record(place, line) if self.kind == "jsonl" else self._text_record(place, line)
            if made is not None:
                yield made

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with opened(self.path) as file:
            if self.stop is None:
                yield from enumerate(file, 1)
                return
            file.seek(self.start)
            data = file.read(self.stop - self.start)
        if len(data) < self.stop - self.start:
            raise UserError(f"{self.path.name}: the file became shorter while it was read")
        # Not splitlines(): JSON strings and plain text may hold U+2028 and its kin, which are no line ends there.
        yield from enumerate(data.split(b"\n"), self.first_line)

    def _text_record(self, place: str, line: bytes) -> Record | None:
        text = line.decode(errors="surrogateescape")
        if not text.strip():
            return None
        if problem := text_problem(text):
            return Record(place, None, problem)
        return Record(place, {"text": text} if self.label is None else {"text": text.strip(), "label": self.label})


@dataclass(frozen=True)
class ConllChunk:
    """A file with a token and its tag a line; a blank line ends a sentence, which is one row."""

    path: Path

    def records(self) -> Iterator[Record]:
        """Return an iterator over the sentences: rows with the columns `tokens` and `tags`, placed at their first line.

        Raises:
            UserError: the file cannot be read.
        """
        pairs, started, problem = list[tuple[str, str]](), 0, ("", 0)
        with opened(self.path) as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(_BOM) if number == 1 else line
                # Only what separates is taken off: a token may be a no-break space.
                text = line.decode(errors="surrogateescape").strip(" \t\r\n")
                if not text.strip() or text.startswith("-DOCSTART-"):
                    if started:
                        yield self._sentence(pairs, started, problem)
                    pairs, started, problem = [], 0, ("", 0)
                    continue
                started = started or number
                fields = text.split("\t") if "\t" in text else text.split(" ")
                reason = text_problem(text)
                if not reason and len(fields) < 2:
                    reason = "a token and its tag are wanted on the line, with blanks or a tab between them"
                problem = problem if problem[0] or not reason else (reason, number)
                pairs.append((fields[0], fields[-1]))
        if started:
            yield self._sentence(pairs, started, problem)

    def _sentence(self, pairs: list[tuple[str, str]], started: int, problem: tuple[str, int]) -> Record:
        reason, number = problem
        if reason:
            return Record(f"{self.path.name}:{number}", None, reason)
        tokens, tags = [token for token, _ in pairs], [tag for _, tag in pairs]
        return Record(f"{self.path.name}:{started}", {"tokens": tokens, "tags": tags})


def _line_chunks(path: Path, kind: str, digest: Any, label: str | None = None) -> list[Chunk]:
    """Return the file cut at line ends, each piece with the number of its first line, from one pass over its bytes."""
    whole = LineChunk(path, kind, label=label)
    if path.suffix.lower() == ".gz":
        _hash(path, digest)
        return [whole]
    chunks = list[Chunk]()
    start, position, first_line = 0, 0, 1
    with opened(path) as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
            cut = block.rfind(b"\n") + 1
            if cut:
                chunks.append(LineChunk(path, kind, start, position + cut, first_line, label))
                start = position + cut
                first_line += block.count(b"\n")
            position += len(block)
    if start < position:
        chunks.append(LineChunk(path, kind, start, position, first_line, label))
    return chunks


def _lines_of(kind: str) -> "_Reader":
    def read(path: Path, digest: Any, headless: bool) -> list[Chunk]:
        return _line_chunks(path, kind, digest)

    return read


def _json(path: Path, digest: Any, headless: bool) -> list[Chunk]:
    if is_json_lines(path):
        return _line_chunks(path, "jsonl", digest)
    _hash(path, digest)
    return [JsonChunk(path)]


def _hashed(chunks: Callable[..., Any], takes_headless: bool = False) -> "_Reader":
    def read(path: Path, digest: Any, headless: bool) -> list[Chunk]:
        _hash(path, digest)
        return list(chunks(path, headless) if takes_headless else chunks(path))

    return read


def _hash(path: Path, digest: Any) -> None:
    if isinstance(digest, _Nothing):
        return
    try:
        with path.open("rb") as file:
            while block := file.read(CHUNK_BYTES):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path.name}: cannot be read: {error.strerror or error}") from None


def _conll(path: Path) -> list[Chunk]:
    return [ConllChunk(path)]


_Reader = Callable[[Path, Any, bool], list[Chunk]]

_TEXT_READERS: dict[str, _Reader] = {
    ".jsonl": _lines_of("jsonl"),
    ".json": _json,
    ".csv": _hashed(csv_chunks, takes_headless=True),
    ".tsv": _hashed(tsv_chunks, takes_headless=True),
    ".txt": _lines_of("txt"),
    ".conll": _hashed(_conll),
    ".bio": _hashed(_conll),
    ".iob": _hashed(_conll),
}

READERS: dict[str, _Reader] = {
    **_TEXT_READERS,
    **{f"{suffix}.gz": reader for suffix, reader in _TEXT_READERS.items()},
    ".parquet": _hashed(parquet_chunks),
    ".arrow": _hashed(arrow_chunks),
}
"""How a file's name ends to what makes its chunks."""


def file_type(path: Path) -> str:
    """Return how the file's name ends, as `READERS` has it: `.jsonl`, `.csv.gz`; empty when no reader is known."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(READERS, key=len, reverse=True) if name.endswith(suffix)), "")


def file_chunks(path: Path, digest: Any = None, headless: bool = False) -> list[Chunk]:
    """Return the file as chunks that can be pickled; their records, in order, are the file's.

    Args:
        path: the file.
        digest: a `hashlib` object that is fed all bytes of the file on the way; None for none.
        headless: a CSV or TSV file's first row is data, and its columns are called 1, 2, 3 ….

    Raises:
        UserError: a type that is not known, a file that cannot be read at all.
    """
    kind = file_type(path)
    if not kind:
        known = ", ".join([*_TEXT_READERS, ".parquet", ".arrow"])
        raise UserError(
            f"data file {str(path)!r}: {path.suffix or 'no suffix'} is not among {known} "
            f"(and .gz of the text ones){did_you_mean(path.suffix, READERS)}"
        )
    _refuse_wide(path, kind)
    return READERS[kind](path, digest or _Nothing(), headless)


def streamed_chunks(path: Path, headless: bool = False) -> list[Chunk]:
    """Return the file as chunks without a pass over its bytes: a file of lines is one chunk, read line by line.

    Args:
        path: the file.
        headless: as `file_chunks` takes it.

    Raises:
        UserError: as `file_chunks` raises it.
    """
    kind = {".jsonl": "jsonl", ".txt": "txt"}.get(file_type(path).removesuffix(".gz"))
    if kind is None:
        return file_chunks(path, None, headless)
    _refuse_wide(path, file_type(path))
    return [LineChunk(path, kind)]


def labelled_chunks(path: Path, digest: Any) -> list[Chunk]:
    """Return a text file as chunks whose rows are `text`, a line without its margins, and `label`, the file's stem."""
    _refuse_wide(path, ".txt")
    return _line_chunks(path, "txt", digest, path.name[: -len(file_type(path))])


def _refuse_wide(path: Path, kind: str) -> None:
    if kind in (".parquet", ".arrow"):
        return
    with opened(path) as file:
        start = file.read(4)
    for mark, encoding in _WIDE_BOMS.items():
        if start.startswith(mark):
            raise UserError(f"{path.name}:1: not UTF-8 but {encoding} (byte 0x{start[0]:02x}); convert the file")


class _Nothing:
    """A digest of nothing."""

    def update(self, data: bytes) -> None:
        """Forget the bytes."""

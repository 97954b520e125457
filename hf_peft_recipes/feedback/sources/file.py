"""Feedback that was given elsewhere, in a file of records."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.asking import Asked, Feedback, Policy, SourceError
from hf_peft_recipes.feedback.journal import parse_line
from hf_peft_recipes.feedback.record import BadRecordError, FeedbackRecord
from hf_peft_recipes.feedback.sources.given import Given, may_be, writer_of


class File:
    """Records in a file, by the id of the sample, else by the row, or the prompt, and the completion."""

    name = "file"
    needs_reference = False

    def __init__(self, *, path: str, any_model: bool = False) -> None:
        """Args:
            path: JSON Lines, of `record.schema.json`; `.gz` too.
            any_model: whether records on the answers of another model are taken.

        Raises:
            UserError: there is no such file, or a line of it is no record.
        """
        self._path, self._any_model = Path(path).expanduser(), any_model
        content = _content(self._path)
        self._given = Given(_records(content, self._path))
        self.version = hashlib.sha256(content).hexdigest()[:8]

    @property
    def records(self) -> list[FeedbackRecord]:
        """All that the file says, in its order."""
        return list(self._given.records)

    def judge(self, asked: Sequence[Asked], policy: Policy | None) -> Iterator[tuple[Asked, Feedback | SourceError]]:
        """Yield what the file says of each completion; a SourceError where it says nothing.

        Raises:
            UserError: all of it is on answers of another model.
        """
        self._require_model(asked)
        for one in asked:
            yield one, self._said(one)

    def _said(self, one: Asked) -> Feedback | SourceError:
        found = self._given.of(one)
        if found is None:
            return SourceError(f"{self.name}: {self._path.name} says nothing of this answer")
        if not found.is_of_model and not self._any_model:
            return SourceError(f"{self.name}: {self._path.name} says it of another model's answer (any_model: true)")
        return found.feedback

    def _require_model(self, asked: Sequence[Asked]) -> None:
        if self._any_model or not asked or not self._given.records:
            return
        writers = {record.model: record for record in self._given.records}
        own = {writer_of(one) for one in asked}
        if not any(may_be(model, writer) for model in writers for writer in own):
            model, writer = next(iter(writers)), next(iter(own))
            differs = next(name for name in ("base", "revision", "adapter") if _differ(model, writer, name))
            raise UserError(
                f"{self._path}: feedback on another model: its {differs} is {getattr(model, differs)!r}, "
                f"not {getattr(writer, differs)!r}; any_model: true takes it all the same"
            )


def _differ(first: object, second: object, name: str) -> bool:
    one, other = getattr(first, name), getattr(second, name)
    return bool(one and other and one != other)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"path {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None


def _records(content: bytes, path: Path) -> Iterator[FeedbackRecord]:
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            record = parse_line(line)
        except (BadRecordError, RecursionError) as error:
            raise UserError(f"{path}:{number}: {error}") from None
        if record is not None:
            yield record

"""What people are to judge: the newest round of a run, or a file of prompts with completions."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.feedback.journal import JOURNAL_FILE
from hf_peft_recipes.feedback.record import BadRecordError, as_turns, row_id
from hf_peft_recipes.feedback.samples import SAMPLES_FILE, Sample, read_samples

_ROUND = re.compile(r"round-(\d+)")


class Target(Protocol):
    """Where completions come from, and where what is said of them goes."""

    journal: Path

    def name(self) -> str:
        """Return what it is, in a few words."""

    def samples(self) -> Mapping[str, Sample]:
        """Return the completions that are asked about now, by their ids, in the order in which people get them."""

    def find(self, sample: str) -> Sample | None:
        """Return a completion by its id, also one that is not asked about any more."""


def open_target(path: Path, output: Path | None = None) -> Target:
    """Return what is to be judged.

    Args:
        path: of a run's folder or of a JSONL file.
        output: where the records of a file go; by default beside it, `answers.feedback.jsonl` for `answers.jsonl`.

    Raises:
        UserError: there is no such folder or file, or it holds nothing that can be judged.
    """
    if path.is_dir():
        if output is not None:
            raise UserError(f"--output goes with a file; the rounds of {str(path)!r} read {path / JOURNAL_FILE}")
        return _Rounds(path)
    if not path.is_file():
        near = did_you_mean(path.name, (each.name for each in path.parent.glob("*"))) if path.parent.is_dir() else ""
        raise UserError(f"{str(path)!r}: no such file or folder{near}")
    journal = output or path.with_name(f"{path.stem}.feedback.jsonl")
    if journal.resolve() == path.resolve():
        raise UserError(f"--output {str(output)!r} is the file that is to be judged; name another")
    return _File(path, journal)


class _Rounds:
    """A run that learns in rounds: its newest one waits for people."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[tuple[int, int], dict[str, Sample]]] = {}
        self.journal = folder / JOURNAL_FILE
        if not self._rounds():
            raise UserError(
                f"{str(folder)!r}: no round waits, there is no round-N/{SAMPLES_FILE}; "
                "a run that asks people (feedback.source: human) or a JSONL file of prompts and completions is wanted"
            )

    def name(self) -> str:
        return f"{self._folder.name or self._folder.resolve().name}, {self._rounds()[-1].parent.name}"

    def samples(self) -> Mapping[str, Sample]:
        return self._samples(self._rounds()[-1])

    def find(self, sample: str) -> Sample | None:
        held = (self._samples(path).get(sample) for path in reversed(self._rounds()))
        return next((each for each in held if each is not None), None)

    def _rounds(self) -> list[Path]:
        numbered = {
            int(found[1]): folder / SAMPLES_FILE
            for folder in self._folder.iterdir()
            if (found := _ROUND.fullmatch(folder.name)) and (folder / SAMPLES_FILE).is_file()
        }
        return [path for _, path in sorted(numbered.items())]

    def _samples(self, path: Path) -> dict[str, Sample]:
        # A run that begins a round anew writes its samples anew.
        status = path.stat()
        stamp = status.st_mtime_ns, status.st_size
        if path not in self._read or self._read[path][0] != stamp:
            self._read[path] = stamp, {sample.id: sample for sample in read_samples(path)}
        return self._read[path][1]


class _File:
    """A file of prompts with completions, read once."""

    def __init__(self, path: Path, journal: Path) -> None:
        self._path, self.journal = path, journal
        self._samples = {sample.id: sample for sample in _read_completions(path)}
        if not self._samples:
            raise UserError(f"{str(path)!r} holds no completions")

    def name(self) -> str:
        return self._path.name

    def samples(self) -> Mapping[str, Sample]:
        return self._samples

    def find(self, sample: str) -> Sample | None:
        return self._samples.get(sample)


def _read_completions(path: Path) -> Iterator[Sample]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                yield _completion(json.loads(line.decode("utf-8")))
            except (BadRecordError, UnicodeDecodeError, json.JSONDecodeError) as error:
                raise UserError(f"{path.name}:{number}: {error}") from None


def _completion(values: Any) -> Sample:
    if not isinstance(values, Mapping):
        raise BadRecordError(f"a mapping is wanted, not {type(values).__name__}")
    if "schema_version" in values and "source" in values:
        raise BadRecordError("a record of feedback; the run's folder, or the file that was judged, is wanted")
    for key in ("prompt", "completion"):
        if key not in values:
            raise BadRecordError(f"{key} is missing{did_you_mean(key, values)}")
    prompt = as_turns(values["prompt"])
    completion, reference = _text(values, "completion"), _text(values, "reference")
    row = _text(values, "row_id") or row_id(prompt, reference)
    # The same answer to the same prompt is judged once, however often it stands there.
    told = json.dumps([row, completion], ensure_ascii=False)
    own = _text(values, "id") or hashlib.sha256(told.encode()).hexdigest()[:16]
    return Sample(id=own, row_id=row, prompt=prompt, completion=completion or "", reference=reference)


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is None and key != "completion":
        return None
    if not isinstance(value, str):
        raise BadRecordError(f"{key} is {value!r:.60}; a text is wanted")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRecordError(f"{key} holds half a character (a lone surrogate)")
    return value

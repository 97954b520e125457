"""The record of feedback: one completion, and what was said of it; one JSON object a line (`record.schema.json`)."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import did_you_mean

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).parent / "record.schema.json"
ROLES_OF_TURNS = ("system", "user", "assistant", "tool")

Turns = tuple[Mapping[str, str], ...]
"""A conversation: `role` and `content` of each turn, and what else a turn has in words (`name`, `tool_call_id` …)."""

_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})")


class BadRecordError(ValueError):
    """What stands on a line is no record, and why."""


class OtherVersionError(BadRecordError):
    """It is a record, but of a schema that this version does not read."""


@dataclass(frozen=True)
class Origin:
    """Who or what gave feedback."""

    name: str
    """`numeric`, `judge`, `human:ada` …"""
    version: str = ""
    """Of a program or a model: what tells apart two of one name that may judge otherwise."""


@dataclass(frozen=True)
class Writer:
    """The model that wrote a completion."""

    base: str = ""
    """Hub id or path."""
    revision: str = ""
    """The commit, or the fingerprint, of the base."""
    adapter: str = ""
    """The digest of the adapter on it; empty for the base itself."""


@dataclass(frozen=True)
class FeedbackRecord:
    """One completion with the feedback on it; at least one of score, label and correction is there."""

    prompt: Turns
    completion: str
    source: Origin
    score: float | None = None
    """From 0, wrong, to 1, right."""
    label: bool | None = None
    """Whether it is accepted, as thumbs tell it."""
    feedback: str | None = None
    """What is said of it, in words."""
    correction: str | None = None
    """The answer in its place, by whoever gave the feedback."""
    refines: str | None = None
    """The id of the record whose completion was refined into this one, in the light of its feedback."""
    model: Writer = field(default_factory=Writer)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """`temperature`, `top_p`, `max_new_tokens`, `seed` …, as the completion was drawn."""
    round: int | None = None
    time: str = ""
    """When the feedback was given: ISO 8601 with its offset, `2026-11-26T09:30:00+00:00`."""
    row_id: str = ""
    """The same for all completions of one row; by default of the prompt alone."""
    id: str = ""
    """By default of row, round, completion and source."""

    def __post_init__(self) -> None:
        """Fill in the ids, and refuse what is no record."""
        object.__setattr__(self, "prompt", as_turns(self.prompt))
        check(self)
        if not self.row_id:
            object.__setattr__(self, "row_id", row_id(self.prompt))
        if not self.id:
            told = (self.row_id, self.round, self.completion, self.source.name, self.source.version, self.refines)
            object.__setattr__(self, "id", _digest(told))

    def is_accepted(self, threshold: float = 1.0) -> bool | None:
        """Return whether the completion is good enough: by its label, else by its score; None where neither is there.

        Args:
            threshold: the least score that is good enough.
        """
        if self.label is not None:
            return self.label
        return None if self.score is None else self.score >= threshold

    def to_json(self) -> str:
        """Return the record as one line, without its end."""
        told = asdict(self)
        for key in ("source", "model"):
            told[key] = _without_defaults(told[key], fields(getattr(self, key)))
        values = _without_defaults(told, fields(self))
        return json.dumps({"schema_version": SCHEMA_VERSION, **values}, ensure_ascii=False, allow_nan=False)


def row_id(prompt: Turns, reference: str | None = None) -> str:
    """Return what a row is known by, whatever file it stands in: 16 hexadecimal digits.

    Args:
        prompt: the turns before the answer.
        reference: the right answer, which tells apart rows of one prompt.
    """
    return _digest(([[turn["role"], turn["content"]] for turn in prompt], reference))


def as_turns(prompt: Any) -> Turns:
    """Return a prompt as turns: a text is one of the user.

    Raises:
        BadRecordError: it is neither a text nor a list of turns.
    """
    if isinstance(prompt, str):
        return ({"role": "user", "content": prompt},)
    turns = prompt if isinstance(prompt, Sequence) else ()
    if not turns or not all(isinstance(turn, Mapping) and _is_turn(turn) for turn in turns):
        raise BadRecordError(f"prompt is {_short(prompt)}; a text, or a list of turns with role and content, is wanted")
    for number, turn in enumerate(turns, 1):
        if turn["role"] not in ROLES_OF_TURNS:
            known = ", ".join(ROLES_OF_TURNS)
            raise BadRecordError(f"the role of turn {number} of the prompt is {_short(turn['role'])}; known: {known}")
        for key, value in turn.items():
            # Left out, it would make another prompt of this one.
            if not isinstance(value, str):
                raise BadRecordError(f"{key} of turn {number} of the prompt is {_short(value)}; a text is wanted")
    return tuple(dict(turn) for turn in turns)


def read_record(values: Any) -> FeedbackRecord:
    """Return the record of a line's values.

    Raises:
        BadRecordError: another version, an unknown or missing key, a value of another type, nothing said.
    """
    if not isinstance(values, Mapping):
        raise BadRecordError(f"a record is a mapping, not {type(values).__name__}")
    version = values.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        if "schema_version" not in values:
            raise BadRecordError("schema_version is missing")
        raise OtherVersionError(f"schema version {version!r}; this version of the software reads {SCHEMA_VERSION}")
    known = [each.name for each in fields(FeedbackRecord)]
    for key in values:
        if key != "schema_version" and key not in known:
            raise BadRecordError(f"unknown key {key!r}{did_you_mean(key, known)}")
    for key in ("prompt", "completion", "source"):
        if key not in values:
            raise BadRecordError(f"{key} is missing")
    told = {key: value for key, value in values.items() if key != "schema_version"}
    told["prompt"] = as_turns(told["prompt"])
    told["source"] = _nested(Origin, "source", told["source"])
    told["model"] = _nested(Writer, "model", told.get("model", {}))
    return FeedbackRecord(**told)


def read_schema() -> dict[str, Any]:
    """Return the JSON schema of a record."""
    schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return schema


_TEXTS = ("completion", "time", "row_id", "id")
_TEXTS_OR_NONE = ("feedback", "correction", "refines")


def check(record: FeedbackRecord) -> None:
    """Raise a BadRecordError where a value is of another type than its field, or nothing is said of the completion."""
    for key in (*_TEXTS, *_TEXTS_OR_NONE):
        value = getattr(record, key)
        if not isinstance(value, str) and (value is not None or key in _TEXTS):
            raise BadRecordError(f"{key} is {_short(value)}; a text is wanted")
    if record.time and not _is_time(record.time):
        raise BadRecordError(f"time is {_short(record.time)}; 2026-11-26T09:30:00+00:00, or Z in place of the offset")
    if record.correction is not None and not record.correction.strip():
        raise BadRecordError("correction is empty; leave it out where there is none")
    if not record.source.name:
        raise BadRecordError("source.name is empty: who gave the feedback?")
    score = record.score
    if score is not None and (isinstance(score, bool) or not isinstance(score, (int, float))):
        raise BadRecordError(f"score is {_short(score)}; a number from 0 to 1 is wanted")
    if score is not None and not (math.isfinite(score) and 0 <= score <= 1):
        raise BadRecordError(f"score is {score}; a number from 0 to 1 is wanted")
    if record.label is not None and not isinstance(record.label, bool):
        raise BadRecordError(f"label is {_short(record.label)}; true or false is wanted")
    if record.round is not None and (isinstance(record.round, bool) or not isinstance(record.round, int)):
        raise BadRecordError(f"round is {_short(record.round)}; a whole number is wanted")
    if not isinstance(record.sampling, Mapping):
        raise BadRecordError(f"sampling is {_short(record.sampling)}; a mapping is wanted")
    if record.score is None and record.label is None and record.correction is None:
        raise BadRecordError("it says nothing: score, label or correction is wanted")
    try:
        json.dumps(asdict(record), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise BadRecordError(f"\\u{half:04x} is half of a surrogate pair, which no text holds") from None
    except (ValueError, TypeError) as error:
        raise BadRecordError(f"a value is none that JSON knows: {error}") from None


def _nested(kind: type[Any], key: str, value: Any) -> Any:
    known = [each.name for each in fields(kind)]
    if not isinstance(value, Mapping):
        raise BadRecordError(f"{key} is {_short(value)}; a mapping of {', '.join(known)} is wanted")
    for name, text in value.items():
        if name not in known:
            raise BadRecordError(f"unknown key {f'{key}.{name}'!r}{did_you_mean(name, known)}")
        if not isinstance(text, str):
            raise BadRecordError(f"{key}.{name} is {_short(text)}; a text is wanted")
    if key == "source" and "name" not in value:
        raise BadRecordError("source.name is missing")
    return kind(**value)


def _without_defaults(values: Mapping[str, Any], known: Sequence[Field[Any]]) -> dict[str, Any]:
    """Return the values without those that a reader fills in."""
    absent = {each.name: each.default if each.default is not MISSING else {} for each in known}
    required = {each.name for each in known if each.default is MISSING and each.default_factory is MISSING}
    return {key: value for key, value in values.items() if key in required or value != absent[key]}


def _is_time(text: str) -> bool:
    try:
        return bool(_TIME.fullmatch(text)) and datetime.fromisoformat(text) is not None
    except ValueError:
        return False


def _is_turn(turn: Mapping[str, Any]) -> bool:
    return isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:60]}…"

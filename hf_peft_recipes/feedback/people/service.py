"""What the web page can ask for: one function a path, from the values of a request to those of its answer."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from hf_peft_recipes.feedback.people.judging import JudgementError, as_feedback, check_name
from hf_peft_recipes.feedback.people.queue import Queue
from hf_peft_recipes.feedback.record import FeedbackRecord
from hf_peft_recipes.feedback.samples import Sample

Values = Mapping[str, Any]


class Service:
    """A queue as a web page sees it."""

    def __init__(self, queue: Queue, show_reference: bool = False) -> None:
        """Args:
        queue: what waits.
        show_reference: also tell the right answer, where there is one.
        """
        self._queue, self._show_reference = queue, show_reference
        self.paths: dict[str, Callable[[Values], Values]] = {
            "/name": self._name,
            "/next": self._next,
            "/judge": self._judge,
            "/undo": self._undo,
            "/status": self._status,
        }

    def _name(self, asked: Values) -> Values:
        return {"person": _person(asked)}

    def _next(self, asked: Values) -> Values:
        skipped = asked.get("skipped", [])
        if not isinstance(skipped, list):
            raise JudgementError("skipped is no list")
        person = _person(asked)
        return self._told(person, self._queue.next(person, {str(sample) for sample in skipped}))

    def _judge(self, asked: Values) -> Values:
        sample = self._queue.target.find(_text(asked, "sample"))
        if sample is None:
            raise JudgementError("this answer is not there any more: the run was begun anew")
        words = (_text(asked, key) for key in ("correction", "critique"))
        record = self._queue.judge(
            _person(asked), sample.id, as_feedback(_text(asked, "verdict"), sample.completion, *words)
        )
        return {"id": record.id}

    def _undo(self, asked: Values) -> Values:
        person = _person(asked)
        return self._told(person, self._queue.before(person, _text(asked, "sample") or None))

    def _status(self, asked: Values) -> Values:
        person, sample = _person(asked), _text(asked, "sample")
        others = self._others(person, sample)
        if asked.get("active") is True and person not in self._queue.said(sample):
            self._queue.keep(person, sample)
        return {"progress": self._progress(person), "others": others}

    def _told(self, person: str, sample: Sample | None) -> Values:
        return {"sample": self._sample(person, sample), "progress": self._progress(person)}

    def _sample(self, person: str, sample: Sample | None) -> Values | None:
        if sample is None:
            return None
        return {
            "id": sample.id,
            "prompt": [{"role": turn["role"], "content": turn["content"]} for turn in sample.prompt],
            "completion": sample.completion,
            "reference": sample.reference if self._show_reference else None,
            "said": _said(self._queue.said(sample.id).get(person)),
            "others": self._others(person, sample.id),
        }

    def _others(self, person: str, sample: str) -> list[str]:
        return [name for name in self._queue.said(sample) if name != person]

    def _progress(self, person: str) -> Values:
        return {"name": self._queue.target.name(), **asdict(self._queue.progress(person))}


def _said(record: FeedbackRecord | None) -> Values | None:
    if record is None:
        return None
    return {"label": record.label, "correction": record.correction, "critique": record.feedback}


def _person(asked: Values) -> str:
    return check_name(_text(asked, "person"))


def _text(asked: Values, key: str) -> str:
    value = asked.get(key)
    if value is not None and not isinstance(value, str):
        raise JudgementError(f"{key} is no text")
    return value or ""

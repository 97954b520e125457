"""Feedback that was given already, found again for the completions that it is on."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from hf_peft_recipes.feedback.asking import Asked, Feedback
from hf_peft_recipes.feedback.record import FeedbackRecord, Turns, Writer
from hf_peft_recipes.feedback.verdicts import sample_id


@dataclass(frozen=True)
class Found:
    """A record that is on a completion."""

    record: FeedbackRecord
    is_of_model: bool
    """Whether the model that it says it is on may be the one that wrote the completion."""

    @property
    def feedback(self) -> Feedback:
        """What it says."""
        record = self.record
        return Feedback(record.score, record.label, record.feedback, record.correction)


class Given:
    """Records by what they are on; of several on one thing, the last one counts."""

    def __init__(self, records: Iterable[FeedbackRecord]) -> None:
        """Args:
        records: in the order in which they were given.
        """
        self.records = list(records)
        self._by_sample: dict[str, FeedbackRecord] = {}
        self._by_text: dict[object, dict[Writer, FeedbackRecord]] = {}
        for record in self.records:
            if (sample := sample_id(record)) is not None:
                self._by_sample[sample] = record
            for key in ((record.row_id, record.completion.strip()), _text_key(record.prompt, record.completion)):
                # Put in anew, so that the last one stands at the end.
                self._by_text.setdefault(key, {}).pop(record.model, None)
                self._by_text[key][record.model] = record

    def of_sample(self, one: Asked) -> Found | None:
        """Return the record on this very sample, by its id; None where there is none."""
        record = self._by_sample.get(one.id)
        if record is None or record.completion.strip() != one.completion.strip():
            return None
        return Found(record, may_be(record.model, writer_of(one)))

    def of(self, one: Asked) -> Found | None:
        """Return the record on the sample, else one on the same answer to the same row, or to the same prompt.

        One of the model that wrote the completion is preferred.
        """
        found = self.of_sample(one)
        if found is not None and found.is_of_model:
            return found
        for key in ((one.row_id, one.completion.strip()), _text_key(one.prompt, one.completion)):
            for model, record in reversed(self._by_text.get(key, {}).items()):
                other = Found(record, may_be(model, writer_of(one)))
                if other.is_of_model:
                    return other
                found = found or other
        return found


def writer_of(one: Asked) -> Writer:
    """Return the model that wrote a completion, as far as that is known."""
    model = getattr(one, "model", None)
    return model if isinstance(model, Writer) else Writer()


def may_be(first: Writer, second: Writer) -> bool:
    """Return whether two may be one model: nothing that both say differs."""
    pairs = ((getattr(first, field.name), getattr(second, field.name)) for field in fields(Writer))
    return all(not one or not other or one == other for one, other in pairs)


def _text_key(prompt: Turns, completion: str) -> object:
    return tuple((turn["role"], turn["content"]) for turn in prompt), completion.strip()

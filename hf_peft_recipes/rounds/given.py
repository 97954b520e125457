"""Answers that were given and judged elsewhere, as the samples of a round."""

from collections.abc import Sequence

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.record import FeedbackRecord, Turns, Writer, row_id
from hf_peft_recipes.feedback.samples import Sample
from hf_peft_recipes.rounds.course import Course
from hf_peft_recipes.rounds.drawing import Tokens, turns_of


def given_samples(
    course: Course, records: Sequence[FeedbackRecord], writer: Writer, tokens: Tokens, round_number: int
) -> list[Sample]:
    """Return the completions of records as samples, each once, none of them of a held-out row.

    Args:
        course: of the run; its rows tell the references of those prompts that they have.
        records: of the file.
        writer: the model of the round, which they are on unless they say otherwise.
        tokens: of the round.
        round_number: from 1.

    Raises:
        UserError: nothing is left.
    """
    references = {_key(turns_of(example)): example.reference for example in course.rows}
    held_out = {_key(turns_of(example)) for example in course.held_out}
    found: dict[str, Sample] = {}
    for record in records:
        if _key(record.prompt) in held_out:
            continue
        reference = references.get(_key(record.prompt))
        known = row_id(record.prompt, reference)
        stem = f"r{round_number}-{known}-{row_id(record.prompt, record.completion)}"
        if stem not in found:
            found[stem] = Sample(
                stem, known, record.prompt, record.completion, reference, round=round_number,
                model=writer, sampling=record.sampling, tokens=tokens.count(record.completion),
            )  # fmt: skip
    if not found:
        raise UserError("feedback.options.path: no record on a row that may be learned from")
    return list(found.values())


def _key(turns: Turns) -> tuple[tuple[str, str], ...]:
    return tuple((turn["role"], turn["content"]) for turn in turns)

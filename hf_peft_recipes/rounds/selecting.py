"""What a round learns from: accepted answers, pairs or judged ones, as its objective takes them, and earlier ones."""

import json
import random
from collections.abc import Sequence
from typing import Any

from hf_peft_recipes.data import Example
from hf_peft_recipes.feedback.asking import Feedback
from hf_peft_recipes.feedback.conversion import Converted, to_dpo, to_kto, to_sft
from hf_peft_recipes.feedback.conversion.answers import same_text
from hf_peft_recipes.feedback.record import FeedbackRecord, Origin
from hf_peft_recipes.feedback.samples import Sample
from hf_peft_recipes.results import write_text
from hf_peft_recipes.rounds.course import Course
from hf_peft_recipes.rounds.drawing import refine_turns, turns_of
from hf_peft_recipes.rounds.folder import RoundFolder, read_json
from hf_peft_recipes.rounds.judging import LIKELIHOOD, Judged, is_accepted
from hf_peft_recipes.rounds.settings import Rounds
from hf_peft_recipes.rounds.speaker import Speaker
from hf_peft_recipes.spec.objectives import objective_facts


def _sft(records: Sequence[FeedbackRecord], settings: Rounds) -> Converted:
    return to_sft(records, settings.accept, settings.answers)


def _dpo(records: Sequence[FeedbackRecord], settings: Rounds) -> Converted:
    return to_dpo(records, settings.accept, settings.answers)


def _kto(records: Sequence[FeedbackRecord], settings: Rounds) -> Converted:
    return to_kto(records, settings.accept)


_BY_SHAPE = {"text": _sft, "pairs": _dpo, "judged": _kto}
"""Shape of an objective's rows to how they are made of records."""


def select_rows(
    course: Course, folder: RoundFolder, samples: Sequence[Sample], judged: Judged, speaker: Speaker
) -> dict[str, Any]:
    """Write what a round learns from; return its numbers, and what was left out, by reason.

    Args:
        course: of the run.
        folder: of the round.
        samples: that were drawn in it.
        judged: what was said of them.
        speaker: the model that drew them.
    """
    settings = course.settings
    told = [(sample, judged.records[sample.id]) for sample in samples if sample.id in judged.records]
    records, unlikely = _without_unlikely(course, told, speaker)
    converted = _BY_SHAPE[objective_facts(course.recipe.objective).shape](records, settings)
    write_text(folder.own_rows, _lines(converted.rows))
    replayed = _replayed(course, folder, converted.rows)
    write_text(folder.rows, _lines([*converted.rows, *replayed]))
    left_out = dict(converted.left_out) | ({"answers that the model finds unlikely": unlikely} if unlikely else {})
    return {
        "rows": len(converted.rows),
        "prompts": converted.rows_used,
        "replayed": len(replayed),
        "left_out": left_out,
    }


def select_likeliest(
    course: Course, refinements: Sequence[Sample], samples: Sequence[Sample], judged: Judged, speaker: Speaker
) -> dict[str, Any]:
    """Accept of the refinements of each answer the one that the model finds likeliest; return how many.

    For feedback by people, who are not asked twice: a refinement that follows from what they said is likely given
    that. One that says the same as what was refused is none.

    Args:
        course: of the run.
        refinements: new tries.
        samples: all that was drawn before.
        judged: what was said of those.
        speaker: the model.
    """
    by_record = {judged.records[sample.id].id: sample for sample in samples if sample.id in judged.records}
    groups: dict[str, list[Sample]] = {}
    for one in refinements:
        assert one.refines is not None, "a refinement refines a record"
        refused = by_record[one.refines]
        if one.completion and same_text(one.completion) != same_text(refused.completion):
            groups.setdefault(one.refines, []).append(one)
    candidates = [one for group in groups.values() for one in group]
    pairs = []
    for one in candidates:
        refused = by_record[str(one.refines)]
        turns = refine_turns(refused, judged.records[refused.id], course.settings)
        pairs.append((turns, one.completion))
    likelihoods = _mean_likelihoods(speaker, pairs)
    value = {one.id: each for one, each in zip(candidates, likelihoods, strict=True)}
    best = [max(group, key=lambda one: value[one.id]) for group in groups.values()]
    origin = Origin(LIKELIHOOD, speaker.writer.adapter or speaker.writer.revision)
    course.journal.append(one.record(Feedback(label=True), origin) for one in best)
    return {"accepted": len(best)}


def _without_unlikely(
    course: Course, told: Sequence[tuple[Sample, FeedbackRecord]], speaker: Speaker
) -> tuple[list[FeedbackRecord], int]:
    """Return the records without those accepted answers that the model finds least likely, and the number of these."""
    share = course.settings.likeliest
    good = [sample for sample, record in told if is_accepted(record, course.settings)]
    if share >= 1 or not good:
        return [record for _, record in told], 0
    likelihoods = _mean_likelihoods(speaker, [(sample.prompt, sample.completion) for sample in good])
    order = sorted(range(len(good)), key=lambda at: -likelihoods[at])
    gone = {good[at].id for at in order[max(1, round(share * len(good))) :]}
    return [record for sample, record in told if sample.id not in gone], len(gone)


def _mean_likelihoods(speaker: Speaker, pairs: Sequence[tuple[Any, str]]) -> list[float]:
    """Return the mean log-likelihood of each completion's tokens, in nats."""
    return [total / max(tokens, 1) for total, tokens in speaker.here.log_likelihoods(pairs)] if pairs else []


def _replayed(course: Course, folder: RoundFolder, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a share of what earlier rounds have learned from; a round that was rolled back has taught nothing."""
    earlier: dict[str, dict[str, Any]] = {}
    for number in range(1, folder.number):
        before = RoundFolder(course.folder, number)
        if read_json(before.account)["kept"]:
            earlier |= {_key(row): row for row in _read(before)}
    for row in rows:
        earlier.pop(_key(row), None)
    number = round(course.settings.replay * len(earlier))
    chosen = random.Random(f"{course.seed}:{folder.number}").sample(range(len(earlier)), number)
    found = list(earlier.values())
    return [found[at] for at in sorted(chosen)]


def _key(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)


def _read(folder: RoundFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.own_rows.read_text(encoding="utf-8").splitlines()]


def rows_of(examples: Sequence[Example]) -> str:
    """Return the data's own answers as a file of rows has them.

    Args:
        examples: with references.
    """
    one_turn = all(len(turns_of(example)) == 1 for example in examples)
    rows = []
    for example in examples:
        turns = turns_of(example)
        answer = str(example.reference)
        prompt: Any = turns[0]["content"] if one_turn else list(turns)
        completion: Any = answer if one_turn else [{"role": "assistant", "content": answer}]
        rows.append({"prompt": prompt, "completion": completion})
    return _lines(rows)


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

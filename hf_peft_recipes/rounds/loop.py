"""The rounds of a run, on one page: draw, judge, refine, select, train, measure, keep or roll back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes import preemption
from hf_peft_recipes.errors import NotTrainedError, WaitingError
from hf_peft_recipes.feedback.record import FeedbackRecord
from hf_peft_recipes.feedback.samples import Sample, read_samples, write_samples
from hf_peft_recipes.feedback.sources.file import File
from hf_peft_recipes.results import RESULT_FILE
from hf_peft_recipes.rounds import judging
from hf_peft_recipes.rounds.course import Course
from hf_peft_recipes.rounds.drawing import Drawing, Tokens, pick_rows, refine_turns, seed_of
from hf_peft_recipes.rounds.folder import RoundFolder, read_json, write_json
from hf_peft_recipes.rounds.given import given_samples
from hf_peft_recipes.rounds.judging import Judged, judge, known_samples
from hf_peft_recipes.rounds.keeping import decide, metric_of
from hf_peft_recipes.rounds.measuring import measure, read_scores
from hf_peft_recipes.rounds.selecting import select_likeliest, select_rows
from hf_peft_recipes.rounds.speaker import Speaker
from hf_peft_recipes.rounds.steps import Steps
from hf_peft_recipes.rounds.training import Train, round_recipe, train_round

Account = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """The model that a round begins with: the best one so far."""

    account: Account
    run: Path | None = None
    """The folder of its training; None for the model that the first round begins with."""
    record: Mapping[str, Any] | None = None

    @property
    def number(self) -> int:
        """Of its round; 0 where nothing was trained yet."""
        return int(self.account["round"])


def run_rounds(course: Course, train: Train, told: Callable[[Account], None]) -> tuple[Standing, list[Account]]:
    """Return the model that is kept, and the accounts of all rounds, that of the start first.

    Args:
        course: what they share.
        train: runs a training.
        told: is called with each account.

    Raises:
        WaitingError: people are to judge first.
        SourceError: the source failed too often.
        NotTrainedError: a training failed.
    """
    start = Standing(_measure_start(course))
    told(start.account)
    standing, accounts = start, [start.account]
    for number in range(1, course.settings.rounds + 1):
        folder = RoundFolder(course.folder, number)
        account = read_json(folder.account)
        if account is None:
            preemption.doing(f"in round {number}")
            account = _run_round(course, folder, standing, start, train)
            write_json(folder.account, account)
        told(account)
        accounts.append(account)
        if account["kept"]:
            standing = Standing(account, folder.training, read_json(folder.training / RESULT_FILE))
    return standing, accounts


def _measure_start(course: Course) -> Account:
    folder = RoundFolder(course.folder, 0)
    account: Account | None = read_json(folder.account)
    if account is None:
        speaker = Speaker(course, None, None)
        is_base = speaker.writer == course.base
        measured = measure(course, folder, speaker, None, is_base)
        account = {"round": 0, "kept": True, **measured.shown()}
        write_json(folder.account, account)
    return account


def _run_round(course: Course, folder: RoundFolder, standing: Standing, start: Standing, train: Train) -> Account:
    steps, speaker = Steps(folder), Speaker(course, standing.run, standing.record)
    seed = seed_of(course.seed, folder.number)
    tokens = Tokens(course.renderer.tokenizer, course.settings.generated_tokens)

    def draw() -> dict[str, Any]:
        if isinstance(course.source, File):
            # What was judged elsewhere was answered elsewhere.
            samples = given_samples(course, course.source.records, speaker.writer, tokens, folder.number)
        else:
            rows = pick_rows(course.rows, course.settings.prompts, folder.number, course.seed)
            samples = _drawing(course, speaker, tokens, seed).answers(rows, folder.number)
        write_samples(folder.samples, samples)
        return {"prompts": len({sample.row_id for sample in samples}), **_counts(samples)}

    drawn = steps.do("draw", draw)
    tokens.spent = drawn["tokens"]
    samples = read_samples(folder.samples)
    judged = _judge(course, steps, "judge", samples, speaker)
    for step in range(1, course.settings.refine_steps + 1) if course.settings.refine else ():
        more = _refine(course, folder, steps, step, samples, judged, speaker, tokens, seed)
        samples, judged = samples + more[0], Judged({**judged.records, **more[1].records})
    selected = steps.do("select", lambda: select_rows(course, folder, samples, judged, speaker))
    speaker.release()
    account = _account(folder, steps, samples, judged, course)
    if not selected["rows"]:
        return account | {"kept": False, "why": "no answer to learn from"}
    return account | _learn(course, folder, steps, standing, start, train)


def _drawing(course: Course, speaker: Speaker, tokens: Tokens, seed: int) -> Drawing:
    return Drawing(speaker.policy, course.settings, course.sampling, speaker.writer, tokens, seed)


def _judge(course: Course, steps: Steps, name: str, samples: Sequence[Sample], speaker: Speaker) -> Judged:
    """Return the feedback on samples, asked for where the journal has none yet."""
    found = Judged()

    def ask() -> dict[str, Any]:
        policy = speaker.policy if course.settings.source == "self" else None
        found.update(judge(samples, course.source, policy, course.journal, course.settings))
        if waiting := [sample for sample in samples if sample.id not in {*found.records, *found.failures}]:
            raise WaitingError(
                f"{len(waiting)} of {len(samples)} answers wait for people: `hf-peft-recipes feedback collect "
                f"{course.folder}` or `feedback serve`; then train again with --resume"
            )
        return {"asked": len(samples), "failures": judging.tally(found.failures)}

    if name in steps.done:
        found.update(Judged(known_samples(samples, course.journal, course.source)))
    steps.do(name, ask)
    return found


def _refine(
    course: Course,
    folder: RoundFolder,
    steps: Steps,
    step: int,
    samples: Sequence[Sample],
    judged: Judged,
    speaker: Speaker,
    tokens: Tokens,
    seed: int,
) -> tuple[list[Sample], Judged]:
    """Return new tries at what is wrong, and what is said of them."""
    path = folder.refinements(step)

    def draw() -> dict[str, Any]:
        wrong = still_wrong(course, samples, judged, step)
        # With the answer and what was said of it a prompt grows, maybe beyond what the base can read.
        fitting = [pair for pair in wrong if course.fits(refine_turns(*pair, course.settings))]
        found = _drawing(course, speaker, tokens, seed_of(seed, step)).refinements(fitting, step)
        write_samples(path, found)
        return {**_counts(found), "too_long": len(wrong) - len(fitting)}

    tokens.spent += steps.do(f"refine-{step}", draw)["tokens"]
    found = read_samples(path)
    if course.settings.select == "likelihood":
        name = f"choose-refinements-{step}"
        steps.do(name, lambda: select_likeliest(course, found, samples, judged, speaker))
        return found, Judged(known_samples(found, course.journal, None))
    return found, _judge(course, steps, f"judge-refinements-{step}", found, speaker)


def still_wrong(
    course: Course, samples: Sequence[Sample], judged: Judged, step: int
) -> list[tuple[Sample, FeedbackRecord]]:
    """Return the answers that are to be tried again, each with what was said of it.

    Rows that have a right answer are through; of the others, the first step takes what was drawn, and a later one the
    last tries. What somebody corrected needs no other try.

    Args:
        course: of the run.
        samples: that were drawn so far.
        judged: what was said of them.
        step: from 1.
    """
    records = judged.records
    through = {
        sample.row_id
        for sample in samples
        if judging.is_accepted(records.get(sample.id), course.settings)
        or (sample.id in records and records[sample.id].correction is not None)
    }
    depth = step - 1
    found, seen = list[tuple[Sample, FeedbackRecord]](), set[tuple[str, str]]()
    for sample in samples:
        record = records.get(sample.id)
        if record is None or sample.row_id in through or sample.id.count(".") != depth:
            continue
        # The same wrong answer twice would be refined twice in the same words.
        if (key := (sample.row_id, sample.completion)) not in seen:
            seen.add(key)
            found.append((sample, record))
    return found


def _learn(
    course: Course, folder: RoundFolder, steps: Steps, standing: Standing, start: Standing, train: Train
) -> dict[str, Any]:
    """Return what training on the round's rows came to, and whether its model is kept."""
    last = None if course.settings.begins_at_base else standing.run
    recipe = round_recipe(course.recipe, folder, course.renderer, last)
    record = train_round(recipe, folder, train)
    steps.do("train", lambda: _trained(record))

    def score() -> dict[str, Any]:
        speaker = Speaker(course, folder.training, record)
        base = read_scores(RoundFolder(course.folder, 0))
        found = measure(course, folder, speaker, base, False).shown()
        speaker.release()
        return found

    trained = {key: value for key, value in steps.done["train"].items() if key != "seconds"}
    try:
        measured = steps.do("measure", score)
    except NotTrainedError as error:
        return {"trained": trained, "kept": False, "why": str(error), "began_with": standing.number}
    metric = metric_of(course.settings, measured["metrics"])
    verdict = decide(measured, standing.account, start.account, course.settings, metric)
    return {
        **{key: value for key, value in measured.items() if key != "seconds"},
        "trained": trained,
        "seconds": {**_seconds(steps), "train": record["measured"]["total_seconds"]},
        "metric": metric,
        "kept": verdict.kept,
        "why": verdict.why,
        "began_with": standing.number,
    }


def _trained(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a round's training took."""
    ledger, measured = record["data"]["ledger"], record["measured"]
    losses = [point["loss"] for point in record["loss_curve"] if "loss" in point]
    return {
        "rows": ledger["rows"]["kept"],
        "tokens": sum(measured["series"]["tokens"]) or ledger["tokens"]["total"],
        "supervised_tokens": ledger["tokens"]["supervised"],
        "steps": measured.get("steps"),
        "loss": losses[-1] if losses else None,
    }


def _account(folder: RoundFolder, steps: Steps, samples: Sequence[Sample], judged: Judged, course: Course) -> Account:
    """Return what the round came to before anything was trained."""
    records, done = judged.records, steps.done
    failures: dict[str, int] = {}
    for name, facts in done.items():
        for reason, count in facts.get("failures", {}).items() if name.startswith("judge") else ():
            failures[reason] = failures.get(reason, 0) + count
    drawn = [sample for sample in samples if sample.refines is None]
    refined = [sample for sample in samples if sample.refines is not None]

    def accepted(some: Sequence[Sample]) -> int:
        return sum(judging.is_accepted(records.get(sample.id), course.settings) for sample in some)

    return {
        "round": folder.number,
        "prompts": done["draw"]["prompts"],
        "samples": len(drawn),
        "accepted": accepted(drawn),
        "refinements": len(refined),
        "refinements_accepted": accepted(refined),
        "refinements_too_long": sum(facts.get("too_long", 0) for facts in done.values()),
        "corrected": sum(record.correction is not None for record in records.values()),
        "failures": failures,
        "requests": sum(facts.get("asked", 0) for facts in done.values()),
        "generated_tokens": sum(sample.tokens for sample in samples),
        "selection": {key: value for key, value in done["select"].items() if key != "seconds"},
        "seconds": _seconds(steps),
    }


def _seconds(steps: Steps) -> dict[str, float]:
    return {name: facts["seconds"] for name, facts in steps.done.items()}


def _counts(samples: Sequence[Sample]) -> dict[str, Any]:
    return {"samples": len(samples), "tokens": sum(sample.tokens for sample in samples)}

"""The same budget spent otherwise: rejection sampling on as many generated tokens, plain SFT on as many trained."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hf_peft_recipes.data import Example
from hf_peft_recipes.errors import NotTrainedError
from hf_peft_recipes.evaluation import scored_row
from hf_peft_recipes.results import write_text
from hf_peft_recipes.rounds.course import Course
from hf_peft_recipes.rounds.folder import RoundFolder, read_json, write_json
from hf_peft_recipes.rounds.loop import Account, run_rounds
from hf_peft_recipes.rounds.measuring import measure, read_scores
from hf_peft_recipes.rounds.selecting import rows_of
from hf_peft_recipes.rounds.speaker import Speaker
from hf_peft_recipes.rounds.training import Train, round_recipe, train_round

_SAMPLES = 4
"""Answers to a prompt at a time, and right ones of them to learn from, as recipe `rft` has it."""


def compare(
    course: Course, accounts: Sequence[Account], train: Train, told: Callable[[Account], None]
) -> dict[str, Any]:
    """Return what rejection sampling and plain SFT reach from the same start on the same budget.

    Both are scored on the same held-out rows; of rejection sampling the best round counts, as of the run itself.

    Args:
        course: of the run.
        accounts: of its rounds, that of the start first.
        train: runs a training.
        told: is called with each account of rejection sampling.
    """
    generated = sum(account["generated_tokens"] for account in accounts[1:])
    trained = sum((account.get("trained") or {}).get("tokens") or 0 for account in accounts[1:])
    return {
        "generated_tokens": generated,
        "trained_tokens": trained,
        "rft": _rejection_sampling(course, generated, train, told),
        "sft": _plain(course, trained, train),
    }


def _rejection_sampling(
    course: Course, generated: int, train: Train, told: Callable[[Account], None]
) -> dict[str, Any]:
    each = max(1, generated // course.settings.rounds)
    number = max(_SAMPLES, course.settings.samples)
    settings = replace(
        course.settings, refine=None, samples=number, answers=number, generated_tokens=each, compare=False
    )
    other = replace(course, settings=settings, folder=course.folder / "comparison" / "rft")
    standing, accounts = run_rounds(other, train, told)
    return {
        "metrics": standing.account["metrics"],
        "intervals": standing.account["intervals"],
        "kept": standing.number,
        "rounds": accounts[1:],
        "generated_tokens": sum(account["generated_tokens"] for account in accounts[1:]),
    }


def _plain(course: Course, trained: int, train: Train) -> dict[str, Any] | None:
    """Return what plain SFT on the data's own answers reaches; None where the rows have none."""
    answered = [example for example in course.rows if example.reference is not None]
    if not answered or not trained:
        return None
    folder = RoundFolder(course.folder / "comparison" / "sft", 1)
    known: dict[str, Any] | None = read_json(folder.account)
    if known is not None:
        return known
    epochs = float(course.recipe.value("training.num_train_epochs") or 1)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.rows, rows_of(_as_many(course, answered, trained / epochs)))
    try:
        record = train_round(round_recipe(course.recipe, folder, course.renderer, None), folder, train)
    except NotTrainedError as error:
        return {"error": str(error)}
    speaker = Speaker(course, folder.training, record)
    measured = measure(course, folder, speaker, read_scores(RoundFolder(course.folder, 0)), False)
    speaker.release()
    found = {**measured.shown(), "trained_tokens": sum(record["measured"]["series"]["tokens"])}
    write_json(folder.account, found)
    return found


def _as_many(course: Course, examples: Sequence[Example], tokens: float) -> list[Example]:
    """Return rows of so many tokens, in a seeded order, again from the first where there are too few."""
    order = random.Random(course.seed).sample(range(len(examples)), len(examples))
    lengths = [scored_row(row).length for row in course.renderer.rows(examples)]
    chosen: list[Example] = []
    while tokens > 0:
        at = order[len(chosen) % len(order)]
        chosen.append(examples[at])
        tokens -= max(1, lengths[at])
    return chosen

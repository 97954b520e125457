"""A run in rounds from its folder to its record: what a plain run is, the rounds in its middle."""

import time
from collections.abc import Callable
from typing import Any

from hf_peft_recipes import preemption, results
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.asking import Source
from hf_peft_recipes.hub.request import PushRequest
from hf_peft_recipes.hub.runs import publish_run, reserve_place
from hf_peft_recipes.preflight import Examined, RunRequest, clear_run
from hf_peft_recipes.provenance import begin_record, data_record
from hf_peft_recipes.rounds.comparing import compare
from hf_peft_recipes.rounds.course import make_course
from hf_peft_recipes.rounds.finishing import clear_rounds, finish
from hf_peft_recipes.rounds.loop import Account, run_rounds
from hf_peft_recipes.rounds.settings import Rounds
from hf_peft_recipes.rounds.training import Train
from hf_peft_recipes.spec import ResolvedRecipe, recipe_file
from hf_peft_recipes.spec.sameness import require_same
from hf_peft_recipes.spec.serialize import with_absolute_paths


def run(
    recipe: ResolvedRecipe,
    settings: Rounds,
    source: Source,
    request: RunRequest,
    examined: Examined,
    train: Train,
    told: Callable[[Account], None],
    publication: PushRequest | None = None,
) -> dict[str, Any]:
    """Run all rounds that are not done yet; return the run's record, which stands in `result.json` too.

    Args:
        recipe: with every value decided.
        settings: its rounds.
        source: of feedback.
        request: what is asked for beside it.
        examined: as `preflight.examine` returns it.
        train: runs the training of a round.
        told: is called with what each round came to.
        publication: where the run goes on the Hub; None keeps it here.

    Raises:
        UserError: rows that cannot be answered or scored; another run in the folder.
        WaitingError: people are to judge first.
        SourceError: the source failed too often.
        NotTrainedError: no round was better than the start.
        PreemptedError: the process was asked to end; what is done is not done again.
    """
    if request.dry_run:
        raise UserError("a dry run has no rounds; try --feedback.rounds 1 --feedback.prompts 8 --max_steps 1")
    folder, began = examined.output_dir, time.perf_counter()
    if request.resume:
        require_same(folder / results.RECIPE_FILE, recipe, _may_change)
    if publication:
        if publication.every_save:
            raise UserError(
                "--push_every save: rounds have no checkpoints; --push_to_hub publishes the model that is kept"
            )
        reserve_place(recipe, request, publication)
    course = make_course(recipe, settings, source, request, examined)
    if request.overwrite:
        clear_run(folder)
        clear_rounds(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = begin_record(recipe, request, examined, 1)
    record["data"] = data_record(recipe, examined, course.renderer, course.checks, course.ledger)
    results.write_text(folder / results.RECIPE_FILE, recipe_file(with_absolute_paths(recipe)))
    results.write_result(folder, record)
    try:
        standing, accounts = run_rounds(course, train, told)
        finish(course, standing, accounts, record, examined.examples.held_out_split)
        if settings.compare:
            record["feedback"]["comparison"] = compare(course, accounts, train, told)
        record |= {"status": "done", "exit_code": 0}
    except BaseException as error:
        record |= results.ending(error)
        raise
    finally:
        record["measured"]["total_seconds"] = time.perf_counter() - began
        with preemption.deferred():
            results.write_result(folder, record)
    if publication:
        publish_run(folder, publication, record)
    return record


_MAY_CHANGE = ("rounds", "on_error", "max_failed", "compare", "falls_at_most", "regression_falls_at_most")
"""Of the section `feedback`, when a run goes on: what is done stays as it is."""


def _may_change(path: tuple[str, ...]) -> bool:
    return path[0] == "feedback" and path[1] in _MAY_CHANGE

"""Runs in rounds as a Python user holds them."""

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.report.rounds import round_line

if TYPE_CHECKING:
    from hf_peft_recipes.feedback.asking import Source
    from hf_peft_recipes.fresh_process import Finished
    from hf_peft_recipes.hub.request import PushRequest
    from hf_peft_recipes.preflight import RunRequest
    from hf_peft_recipes.rounds.settings import Rounds
    from hf_peft_recipes.rounds.training import Training
    from hf_peft_recipes.spec import ResolvedRecipe

_OF_SOURCE = (("feedback", "source"), ("feedback", "options"))
_OF_FILES = ("model", "tokenizer", "callbacks", "rewards")


def train_in_rounds(
    recipe: "ResolvedRecipe", request: "RunRequest", publication: "PushRequest | None" = None
) -> tuple[Path, dict[str, Any]]:
    """Return folder and record of a run in rounds.

    Args:
        recipe: decided to the last value.
        request: what is asked for beside it.
        publication: where the run goes on the Hub when it is done.

    Raises:
        UserError: a mistake in what was asked; nothing has been written then.
        WaitingError: people are to judge first.
        SourceError: the source of feedback failed too often.
        NotTrainedError: no round was better than the start, or a training failed.
        CertificateError: what was saved does not load as what was trained.
    """
    from hf_peft_recipes.preflight import examine, run_folder
    from hf_peft_recipes.rounds.settings import read_rounds
    from hf_peft_recipes.upstream_noise import quiet

    if request.budget or request.longest:
        raise UserError(
            f"{recipe.name} learns in rounds: what is raced or rehearsed is one training, as {recipe.objective} is"
        )
    if named := next((key for key in _OF_FILES if getattr(request, key)), None):
        raise UserError(f"each round begins in a process of its own, and {named} is an object here; give its name")
    settings = read_rounds(recipe)
    request = replace(request, output_dir=run_folder(recipe, request))
    source = _open_source(recipe, settings, run_folder(recipe, request), request.sources)
    examined = examine(recipe, request)

    def told(account: Mapping[str, Any]) -> None:
        if request.progress:
            print(round_line(account, settings.rounds), file=sys.stderr, flush=True)

    def train(training: "Training") -> "tuple[Finished, dict[str, Any] | None]":
        return _train_fresh(training, request.launch)

    with quiet():
        from hf_peft_recipes.rounds.run import run

        return examined.output_dir, run(recipe, settings, source, request, examined, train, told, publication)


def _open_source(
    recipe: "ResolvedRecipe", settings: "Rounds", folder: Path, sources: Mapping[str, Callable[..., Any]]
) -> "Source":
    from hf_peft_recipes.feedback.sources import open_source
    from hf_peft_recipes.rounds.folder import journal_path
    from hf_peft_recipes.spec.entries import is_of_hub

    allowed = bool(recipe.value("allow_code_execution"))
    # What the source keeps lies with the run: what people say by `feedback collect`, and a server's answers.
    kept = {"human": {"journal": str(journal_path(folder))}, "judge": {"cache": str(folder / "judge.jsonl")}}
    options = {**kept.get(settings.source, {}), **settings.options}
    given = [entry.origin for path, entry in recipe.entries.items() if path[:2] in _OF_SOURCE]
    # A recipe of the Hub decides neither on the source nor on where it sends what the model says.
    origin = next((origin for origin in given if is_of_hub(origin)), given[0])
    for path, entry in recipe.entries.items():
        if path[:2] == ("feedback", "engine_options") and is_of_hub(entry.origin):
            raise UserError(f"{'.'.join(path)} (from {entry.origin}) says who answers: who runs the recipe does")
    return open_source(settings.source, options, origin, sources, allowed)


def _train_fresh(training: "Training", launch: tuple[str, ...]) -> "tuple[Finished, dict[str, Any] | None]":
    """Train a round in a process of its own: what it leaves in memory, or runs out of, is no other's."""
    from hf_peft_recipes.checkpoints import newest_good
    from hf_peft_recipes.fresh_process import run_verb
    from hf_peft_recipes.results import RECIPE_FILE, RESULT_FILE, write_text
    from hf_peft_recipes.rounds.folder import read_json
    from hf_peft_recipes.spec import recipe_file
    from hf_peft_recipes.spec.serialize import decision_words

    with tempfile.TemporaryDirectory(prefix="round-") as scratch:
        file = Path(scratch) / RECIPE_FILE
        write_text(file, recipe_file(training.recipe))
        # One that was cut off goes on from its last whole checkpoint, and begins again where it left none.
        begin = "--resume" if newest_good(training.folder)[0] else "--overwrite"
        words = ["--exact", "--no-rehearse", begin, "--output_dir", str(training.folder), *launch]
        words += decision_words(training.recipe)
        finished = run_verb("train", str(file), *words)
    return finished, read_json(training.folder / RESULT_FILE)

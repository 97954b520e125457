"""How a round learns: a run like any other, on the rows of the round, in its folder."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_peft_recipes.data import Renderer
from hf_peft_recipes.errors import NotTrainedError
from hf_peft_recipes.fresh_process import Finished, outcome
from hf_peft_recipes.results import RESULT_FILE
from hf_peft_recipes.rounds.folder import RoundFolder, read_json
from hf_peft_recipes.spec import Entry, ResolvedRecipe
from hf_peft_recipes.spec.entries import GIVEN

_ORIGIN = "feedback.rounds"


@dataclass(frozen=True)
class Training:
    """The run of one round."""

    recipe: ResolvedRecipe
    folder: Path


Train = Callable[[Training], tuple[Finished, Mapping[str, Any] | None]]
"""Runs it; returns its finished process and the record that it left, if any."""


def round_recipe(recipe: ResolvedRecipe, folder: RoundFolder, renderer: Renderer, last: Path | None) -> ResolvedRecipe:
    """Return the recipe by which a round learns from its rows.

    Args:
        recipe: of all rounds.
        folder: of this one.
        renderer: of the base, by which rows are to be rendered as they were answered.
        last: the run to go on from; None for what the recipe begins with.
    """
    settings: dict[tuple[str, ...], Any] = {
        ("certify",): "off",
        ("data", "dataset"): str(folder.rows.resolve()),
        ("data", "split"): "train",
        ("data", "separator"): renderer.separator,
        ("data", "weights"): None,
        # All of them are for learning: the round is scored on the held-out rows of the data.
        ("data", "validation_size"): 0.0,
        ("evaluation", "max_rows"): 0,
        ("evaluation", "split"): None,
        ("training", "eval_strategy"): "no",
    }
    entries = type(recipe.entries)(recipe.entries)
    for dotted in ("feedback", "data.columns", "data.format"):
        entries.drop(tuple(dotted.split(".")))
    if last is not None:
        # An adapter goes on; without one the whole model does.
        key = ("adapter", "adapter_name_or_path") if recipe.section("adapter") else ("model", "name_or_path")
        settings[key] = str(last.resolve())
    for path, value in settings.items():
        entries.put(path, Entry(value, _ORIGIN, layer=GIVEN))
    return replace(recipe, entries=entries)


def train_round(recipe: ResolvedRecipe, folder: RoundFolder, train: Train) -> dict[str, Any]:
    """Return the record of the round's run, which is not run again where it is done.

    Raises:
        NotTrainedError: it failed, with its own last words.
    """
    known = read_json(folder.training / RESULT_FILE)
    if known and known["status"] == "done":
        return dict(known)
    finished, record = train(Training(recipe, folder.training))
    ended = outcome(finished, record)
    if ended["status"] != "done" or record is None:
        raise NotTrainedError(f"round {folder.number} was not trained: {ended['error']}")
    for checkpoint in folder.training.glob("checkpoint-*"):
        # The round is done: nobody goes on from there.
        shutil.rmtree(checkpoint)
    return dict(record)

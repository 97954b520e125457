"""A run that is finished, loaded from its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_peft_recipes import adapters, lineage, models, registry
from hf_peft_recipes.data import ENCODERS, Maker, Renderer
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.heads import find_head
from hf_peft_recipes.results import RECIPE_FILE
from hf_peft_recipes.spec import ResolvedRecipe, compose, resolve
from hf_peft_recipes.spec.objectives import objective_facts


@dataclass
class TrainedModel:
    """A trained model in memory, with what is needed to serve it as it was trained."""

    model: Any
    renderer: Maker
    stop_ids: list[int]
    recipe: ResolvedRecipe

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter on a base was trained, rather than the whole model."""
        return hasattr(self.model, "disable_adapter")


def read_recipe(folder: Path) -> ResolvedRecipe:
    """Return the recipe of the run in `folder`, exactly as it ran.

    Raises:
        UserError: there is none, or this version does not read it.
    """

    def lookup(name: str) -> tuple[str, str, str | Mapping[str, Any]]:
        source = registry.find(name)
        return source.name, source.origin, source.read()

    composition = compose(str(folder / RECIPE_FILE), lookup, True)
    return resolve(composition, (), {**detect_device().facts(), "run.demo": False})


def load(folder: Path, recipe: ResolvedRecipe, record: Mapping[str, Any]) -> TrainedModel:
    """Return the model that the run in `folder` trained.

    Args:
        folder: the run's folder.
        recipe: of its `recipe.yaml`.
        record: its `result.json`.

    Raises:
        UserError: the folder lacks what was trained, or the base cannot be loaded.
    """
    head, own, data = find_head(recipe.objective), {"name_or_path": str(folder)}, record["data"]
    tokenizer, labels = models.load_tokenizer(own), data.get("labels") or ()
    loading, seed = head.loading(labels, tokenizer), recipe.value("training.seed") or 0
    # What lies there decides: after a merge the recipe still tells of an adapter.
    if recipe.section("adapter") and not (folder / "config.json").is_file():
        section = recipe.section("model")
        models.check_base(section)
        base = models.load_base(head.model_class(), section, recipe.section("quantization"), loading, seed)
        lineage.require_base(folder, section)
        model = adapters.load_adapter(base, folder)
    else:
        models.check_base(own)
        model = models.load_base(head.model_class(), {**(recipe.section("model") or {}), **own}, None)
    if torch.cuda.is_available() and not recipe.section("quantization"):
        model = model.cuda()
    stops = models.stop_ids(getattr(model, "generation_config", None), tokenizer)
    renderer: Maker
    if encoder := ENCODERS.get(objective_facts(recipe.objective).shape):
        renderer = encoder(tokenizer, stops, labels)
    else:
        renderer = Renderer(tokenizer, stops, (recipe.section("data") or {})["loss_on"], data["separator"])
        renderer.as_served, renderer.closes = data["mended"]["as_served"], data["mended"]["closes"]
    return TrainedModel(model.eval(), renderer, stops, recipe)

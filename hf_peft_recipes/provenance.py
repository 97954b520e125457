"""Where a run comes from, as its record says it: recipe, command, base, data, versions, hardware."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_peft_recipes import models, results
from hf_peft_recipes.data import Check, Maker
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.measure.facts import host_facts, installed_versions
from hf_peft_recipes.preflight import Examined, RunRequest
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.serialize import absolute


def begin_record(recipe: ResolvedRecipe, request: RunRequest, examined: Examined, processes: int) -> dict[str, Any]:
    """Return the record of a run that begins: what is known before anything is trained.

    Args:
        recipe: with every value decided.
        request: what was asked for beside it.
        examined: its folder and data.
        processes: that run it.
    """
    seed = recipe.value("training.seed")
    return {
        "schema_version": results.SCHEMA_VERSION,
        "status": "running",
        "exit_code": None,
        "recipe": recipe.name,
        "recipe_sources": [str(absolute(source)) for source in recipe.sources],
        "objective": recipe.objective,
        "speed": [],
        "recompute": "off",
        "command": request.command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "output_dir": str(examined.output_dir),
        "base_model": _base_model(recipe, request),
        "versions": installed_versions(),
        "hardware": {"device": dataclasses.asdict(detect_device()), **host_facts(), "processes": processes},
        "seeds": {"training": seed, "data": recipe.value("training.data_seed")},
        "data": {},
        "parameters": {},
        "measured": {"peak_memory_bytes": None, "tokens_per_second": None, "step_seconds": None},
        "metrics": {"before": {}, "after": {}},
        "loss_curve": [],
    }


def data_record(
    recipe: ResolvedRecipe, examined: Examined, renderer: Maker, checks: Sequence[Check], ledger: dict[str, Any]
) -> dict[str, Any]:
    """Return what a record says of the data: which they are, how they are rendered, and where every row went.

    Args:
        recipe: with every value decided.
        examined: its data.
        renderer: that makes token rows of them.
        checks: what the stop test found.
        ledger: of the rows.
    """
    examples = examined.examples
    rows = {"train": examples.train_rows, "validation": len(examples.validation), "held_out": len(examples.held_out)}
    return {
        "dataset": examples.name,
        "hub_ids": _hub_ids(recipe),
        "format": examples.format,
        "fingerprint": examples.fingerprint,
        "columns": dict(examples.columns),
        "labels": list(renderer.labels),
        "chat_template": renderer.has_template,
        "separator": renderer.separator,
        "mended": {"as_served": renderer.as_served, "closes": renderer.closes},
        "checks": [dataclasses.asdict(check) for check in checks],
        "rows": rows,
        "ledger": ledger,
    }


def _base_model(recipe: ResolvedRecipe, request: RunRequest) -> str:
    """Return the Hub id of the base, or the full path of its folder."""
    if request.model is not None:
        return str(getattr(request.model.config, "_name_or_path", "") or "an object of the caller's")
    return str(absolute(models.base_location(recipe.section("model"))))


def _hub_ids(recipe: ResolvedRecipe) -> list[str]:
    """Return the ids of those data sets that come from the Hub."""
    named = recipe.value("data.dataset")
    names = named if isinstance(named, list) else [named]
    return [str(name).partition("@")[0] for name in names if name is not None and not Path(str(name)).exists()]

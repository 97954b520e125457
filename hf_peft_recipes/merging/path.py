"""The whole path of one merge: the unmerged model, the variants and their scores, the best one's folder."""

import dataclasses
import gc
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hf_peft_recipes import certificate, models, trained
from hf_peft_recipes.data import Encoder, Example, Maker
from hf_peft_recipes.data.formats import BadRowError
from hf_peft_recipes.data.rendering import TokenRow
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.evaluation import Metrics, find_task
from hf_peft_recipes.generation.divergence import measure
from hf_peft_recipes.heads import find_head, head_of
from hf_peft_recipes.measure.facts import installed_versions
from hf_peft_recipes.merging import combination, output
from hf_peft_recipes.merging.divergence import measure_head
from hf_peft_recipes.merging.request import MergeRequest, check
from hf_peft_recipes.merging.texts import TEXTS
from hf_peft_recipes.merging.variants import VARIANTS, build, possible_variants
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts
from hf_peft_recipes.trained import TrainedModel

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Yardstick:
    """What merged models are held to."""

    rows: Sequence[Any]
    """On which they are compared with the unmerged model."""
    examples: Sequence[Example]
    """Held-out rows for the task's metrics; empty where they cannot be read any more."""
    task: str
    source: str
    """Where the rows come from, for people."""


def merge(recipe: ResolvedRecipe, record: Mapping[str, Any], request: MergeRequest) -> dict[str, Any]:
    """Merge a run's adapter, write the model that plain transformers loads; return what was merged.

    Args:
        recipe: the run's.
        record: its `result.json`.
        request: what is asked for.

    Returns:
        The record that stands in the target's `merge.json`: `into` (the variant that was kept) and why, `variants`
        (their figures by name), `unmerged` (the figures of the adapter on its base), `adapters`, `files`, `versions`.

    Raises:
        UserError: a mistake in what was asked; nothing has been written then.
        CertificateError: what was written does not load as what was merged.
        RecipeError: the GGUF converter failed; the merged model has been written.
    """
    check(recipe, record, request)
    names = _chosen(recipe, request)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    request.say(f"loading {request.folder} as it was trained")
    unmerged = trained.load(request.folder, recipe, record)
    with tempfile.TemporaryDirectory() as scratch:
        adapter = request.folder
        if request.adapters:
            request.say(f"combining {len(request.adapters) + 1} adapters ({request.combination['combination_type']})")
            seed = recipe.value("training.seed") or 0
            adapter = combination.combine(unmerged.model, request, seed, Path(scratch))
        yardstick = _yardstick(unmerged, record, request)
        request.say(f"scoring the unmerged adapter on {yardstick.source}")
        reference = _scores(unmerged, unmerged.model, yardstick, record)
        figures, best, model = dict[str, dict[str, Any]](), "", None
        for name in names:
            # Beside the unmerged model there is room for one more.
            model = None
            _release()
            request.say(f"scoring {name}: {VARIANTS[name].summary}")
            figures[name], model = _tried(name, recipe, adapter, unmerged, yardstick, record)
            if model is not None:
                last = name
        best = _best(figures)
        stops, tokenizer = unmerged.stop_ids, unmerged.renderer.tokenizer
        loading = find_head(recipe.objective).loading(unmerged.renderer.labels, tokenizer)
        del unmerged
        _release()
        if best != last or model is None:
            model = None
            _release()
            model = build(best, recipe, adapter, loading)
    if getattr(model, "generation_config", None) is not None:
        _set_stops(model, stops, tokenizer)
    made: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run": {"folder": str(request.folder.resolve()), "recipe": record["recipe"], "started": record["started"]},
        "base_model": models.base_location(recipe.section("model")),
        "objective": recipe.objective,
        "adapters": _adapters(request),
        "combination": dict(request.combination) if request.adapters else None,
        "into": best,
        "why": "asked for" if request.into else "the only one" if len(names) == 1 else "least divergence",
        "compared_on": yardstick.source,
        "task": yardstick.task,
        "unmerged": reference,
        "variants": figures,
        "gguf": None,
        "started": started,
        "versions": installed_versions(),
        "files": {},
    }
    request.say(f"writing {best} to {request.target}")
    class_name = find_head(recipe.objective).model_class().__name__
    loading = {"dtype": str(model.dtype).removeprefix("torch.")}
    statement = certificate.state(model, tokenizer, stops, class_name, loading, whole=True)
    output.save(model, tokenizer, made, statement, request)
    if recipe.value("certify") != "off":
        model = None
        _release()
        request.say("loading it in a fresh process")
        made["certificate"] = certificate.certify_in_fresh_process(request.target)
    output.describe(made, record, request)
    if "certificate" in made:
        certificate.require(made["certificate"], str(request.target))
    if request.gguf:
        request.say("converting to GGUF")
        output.convert(made, request)
    return made


def _chosen(recipe: ResolvedRecipe, request: MergeRequest) -> list[str]:
    names = possible_variants(recipe)
    if request.into is None:
        # llama.cpp reads no 4-bit checkpoint.
        return [name for name in names if not (request.gguf and name == "requantized")]
    if request.into not in names:
        why = "its base was not quantised" if names == ["bf16"] else "its base is there in 4 bits alone"
        raise UserError(f"--into {request.into}: not for this run, {why}; there is {', '.join(names)}")
    return [request.into]


def _tried(
    name: str,
    recipe: ResolvedRecipe,
    adapter: Path,
    unmerged: TrainedModel,
    yardstick: Yardstick,
    record: Mapping[str, Any],
) -> tuple[dict[str, Any], Any]:
    """Return the figures of a variant and its model; the reason and None where it cannot be made."""
    begun = time.perf_counter()
    head = find_head(recipe.objective)
    loading = head.loading(unmerged.renderer.labels, unmerged.renderer.tokenizer)
    try:
        model = _placed(build(name, recipe, adapter, loading), unmerged.model.device)
    except UserError as error:
        return {"error": str(error)}, None
    except torch.OutOfMemoryError:
        return {"error": "no room beside the unmerged model on this GPU"}, None
    length = record["data"]["ledger"]["max_length"]
    rows, kind = yardstick.rows, objective_facts(recipe.objective).head
    if kind == "causal_lm":
        moved = measure(unmerged.model, model, rows, length)
    else:
        tokenizer = unmerged.renderer.tokenizer
        moved = measure_head(head_of(kind), unmerged.model, model, rows, tokenizer, length)
    figures = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "size_bytes": output.size_bytes(model),
        "divergence": dataclasses.asdict(moved),
        **_scores(unmerged, model, yardstick, record),
        "seconds": time.perf_counter() - begun,
    }
    return figures, model


def _scores(
    unmerged: TrainedModel, model: Any, yardstick: Yardstick, record: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    if not yardstick.examples:
        return {"metrics": {}, "intervals": {}}
    found: Metrics = trained.score(unmerged, model, yardstick.examples, yardstick.task, record)
    return {"metrics": found.values, "intervals": found.intervals}


def _best(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the variant with the least divergence; of equal ones that with the lower loss.

    Raises:
        UserError: none could be made.
    """
    made = {name: found for name, found in figures.items() if "error" not in found}
    if not made:
        raise UserError(next(iter(figures.values()))["error"])
    return min(made, key=lambda name: (made[name]["divergence"]["mean"], made[name]["metrics"].get("loss", 0.0)))


def _yardstick(unmerged: TrainedModel, record: Mapping[str, Any], request: MergeRequest) -> Yardstick:
    recipe, renderer = unmerged.recipe, unmerged.renderer
    try:
        examples = trained.read_held_out(recipe)
        known = (record["data"]["dataset"], record["data"]["fingerprint"])
        if request.own_data and (examples.name, examples.fingerprint) != known:
            raise UserError(f"the data {examples.name!r} are no longer those of the run")
    except UserError as error:
        request.say(f"no held-out rows ({error}): comparing on fixed texts instead, without the task's metrics")
        return Yardstick(_token_rows(renderer), [], "text", "fixed texts")
    rows = [row for row in renderer.rows(examples.held_out) if not isinstance(row, BadRowError)]
    source = f"{len(rows)} rows of {examples.held_out_split}"
    return Yardstick(rows, examples.held_out, _task(recipe, examples.held_out), source)


def _task(recipe: ResolvedRecipe, held_out: Sequence[Example]) -> str:
    asked = (recipe.section("evaluation") or {})["task"]
    return find_task(held_out, asked, objective_facts(recipe.objective).head)


def _token_rows(renderer: Maker) -> Sequence[Any]:
    if isinstance(renderer, Encoder):
        return renderer.unlabelled(TEXTS)
    encoded = renderer.tokenizer(list(TEXTS)).input_ids
    return [TokenRow(list(ids), list(ids)) for ids in encoded]


def _adapters(request: MergeRequest) -> list[dict[str, Any]]:
    folders = [request.folder, *request.adapters]
    weights = combination.shares(request) if request.adapters else [1.0]
    return [
        {"folder": str(folder.resolve()), "weight": weight} for folder, weight in zip(folders, weights, strict=True)
    ]


def _placed(model: Any, device: torch.device) -> Any:
    """Return the model on the unmerged one's device, where it fits there beside it."""
    if device.type != "cuda" or model.device == device:
        return model
    free, _ = torch.cuda.mem_get_info(device)
    # A fifth more, for activations and logits.
    return model.to(device) if free > 1.2 * output.size_bytes(model) else model


def _set_stops(model: Any, stop_ids: Sequence[int], tokenizer: Any) -> None:
    """Let plain `generate` end an answer where the trained one ends."""
    config = model.generation_config
    config.eos_token_id = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0] if stop_ids else config.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

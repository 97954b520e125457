"""What a run writes once it has trained: adapter or model, tokenizer, the base's fingerprint, the statement."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes import certificate, models
from hf_peft_recipes.checkpoints.writing import beside
from hf_peft_recipes.data import Maker
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.fingerprint import FINGERPRINT_FILE, Fingerprint, fingerprint, local_reader
from hf_peft_recipes.heads import find_head
from hf_peft_recipes.results import open_weights, write_text
from hf_peft_recipes.sharding import rounded, trained_tensors, whole_state
from hf_peft_recipes.spec import ResolvedRecipe


def save(model: Any, renderer: Maker, recipe: ResolvedRecipe, folder: Path, is_main: bool = True) -> None:
    """Write the adapter (or, without one, the whole model) so that a plain client loads it, and what it can be held to.

    Where processes hold parts of the model, all of them must come here, and one writes the whole.

    Args:
        model: as it was trained, out of its trainer's wrappers.
        renderer: that made its rows.
        recipe: of the run.
        folder: the run's.
        is_main: whether this process writes.

    Raises:
        OSError: it could not be written; nothing of it is there then.
    """
    tensors = whole_state(model)
    if tensors is None:
        _round_heads(model)
        if not is_main:
            return
    else:
        tensors = rounded(model, tensors)
    with beside(folder) if is_main else nullcontext(folder) as partial:
        _save(model, renderer, recipe, partial, tensors, is_main)


def _save(
    model: Any, renderer: Maker, recipe: ResolvedRecipe, folder: Path, tensors: dict[str, Any] | None, is_main: bool
) -> None:
    if is_main:
        _write(model, renderer, recipe, folder, tensors)
    head = find_head(recipe.objective)
    loading = _loading(model, recipe)
    if of_head := head.loading(renderer.labels, renderer.tokenizer):
        loading |= of_head
        if "quantization" in loading:
            loading["quantization"] = models.beside_head(loading["quantization"], models.drawn_modules(model))
    statement = certificate.state(
        model, renderer.tokenizer, sorted(renderer.stop_ids), head.model_class().__name__, loading,
        trained=trained_tensors(model, tensors), precision=None if tensors is None else _rounded_to(recipe),
    )  # fmt: skip
    if is_main:
        certificate.write_statement(folder, statement)


def _rounded_to(recipe: ResolvedRecipe) -> str | None:
    """Return the dtype in which engines that split a model compute, which cannot be put off as autocast can."""
    if recipe.value("training.bf16"):
        return "bfloat16"
    return "float16" if recipe.value("training.fp16") else None


def _write(model: Any, renderer: Maker, recipe: ResolvedRecipe, folder: Path, tensors: dict[str, Any] | None) -> None:
    """Write weights, tokenizer and the base's fingerprint; of `tensors` where the model holds parts alone."""
    # Beside it stands, after preference optimisation, a copy of the adapter as it was before.
    chosen: dict[str, Any] = {"selected_adapters": [model.active_adapter]} if hasattr(model, "peft_config") else {}
    if tensors is not None:
        chosen["state_dict"] = tensors
    with _cardless(model):
        model.save_pretrained(str(folder), **chosen)
    open_weights(folder)
    renderer.tokenizer.save_pretrained(str(folder))
    pin_base(model, recipe, folder)
    _name_base(model, recipe, folder)


@contextmanager
def _cardless(model: Any) -> Iterator[None]:
    """Let PEFT write no card in the block: its own is a form to fill in, with a path of this machine as the base."""
    model.create_or_update_model_card = lambda *_, **__: None
    try:
        yield
    finally:
        del model.create_or_update_model_card


def _round_heads(model: Any) -> None:
    """Give modules that were trained whole the base's dtype: a client loads them into it, whatever the file holds."""
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for original, copy in zip(
                module.original_module.parameters(), module.modules_to_save.parameters(), strict=False
            ):
                copy.data = copy.data.to(original.dtype)


@dataclass(frozen=True)
class _Base:
    """Where the base came from."""

    name: str
    """Full path of its files, or its id on the Hub."""
    commit: str | None
    found: Fingerprint


def pin_base(model: Any, recipe: ResolvedRecipe, folder: Path) -> None:
    """Write the base's fingerprint beside what is trained on it, where it has files.

    Args:
        model: as it was loaded, with or without its adapter.
        recipe: of the run.
        folder: the run's.
    """
    if base := _base(model, recipe):
        write_text(folder / FINGERPRINT_FILE, base.found.to_json())


def _name_base(model: Any, recipe: ResolvedRecipe, folder: Path) -> None:
    """Name the base in an adapter's config by its full path or by its commit."""
    base = _base(model, recipe)
    if base and hasattr(model, "peft_config"):
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": base.name, "revision": base.commit}
        write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _base(model: Any, recipe: ResolvedRecipe) -> _Base | None:
    """Return the base that the model was loaded from; None where no files of it can be had."""
    section = dict(recipe.section("model") or {})
    if not _is_from(model, section):
        # The caller's own object: what it was loaded from, if from anything, is all that is known.
        section = {"name_or_path": _loaded_from(model)}
    try:
        files, commit = models.base_files(section)
        told = str(section.get("name_or_path"))
        found = fingerprint(local_reader(files), files.name if commit is None else told, commit)
    except UserError:
        return None
    return _Base(str(files) if commit is None else told, commit, found)


def _is_from(model: Any, section: Mapping[str, Any]) -> bool:
    location = models.base_location(section)
    return _loaded_from(model) in (location, str(Path(location).expanduser()))


def _loaded_from(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or "")


def _loading(model: Any, recipe: ResolvedRecipe) -> dict[str, Any]:
    """Return the keyword arguments with which a plain client loads the model as it was trained."""
    dtype = (recipe.section("model") or {}).get("dtype")
    plain = dtype if isinstance(dtype, str) and dtype != "auto" else str(model.dtype).removeprefix("torch.")
    attention = (recipe.section("model") or {}).get("attn_implementation")
    loading = {"dtype": plain, "attn_implementation": attention, "quantization": recipe.section("quantization")}
    return {key: value for key, value in loading.items() if value is not None}

"""Adapters on a base: added, loaded, and the vocabulary that grows with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.pickles import adapter_advice
from hf_peft_recipes.sharding import shape


def adapter_file(folder: Path) -> Path | None:
    """Return the file of the adapter in `folder`, None when the folder holds none."""
    path = folder / "adapter_model.safetensors"
    return path if path.is_file() else None


def fit_vocabulary(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that the tokenizer has and the model had not; the model has embeddings for them now.

    They begin as transformers draws them, around the mean of the others, and mean nothing until they are trained.
    """
    known = shape(model.get_input_embeddings().weight)[0]
    if len(tokenizer) <= known:
        return []
    model.resize_token_embeddings(len(tokenizer))
    return list(range(known, len(tokenizer)))


def vocabulary_layers(model: Any) -> list[str]:
    """Return the names of the layers that hold a vector for every token: the embedding, and the head that is not it."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    kept = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    return [name.rpartition(".")[2] for name, module in model.named_modules() if any(module is one for one in kept)]


def add_adapter(model: Any, adapter: Mapping[str, Any], task_type: str) -> Any:
    """Return the model with the adapter that the section describes, its trainable tensors in float32.

    Args:
        model: the base, quantised or not.
        adapter: `peft_type` and the keyword arguments of that type's config class; or the `adapter_name_or_path` of one
            to go on with.
        task_type: PEFT's name of the task, `CAUSAL_LM` for one.

    Raises:
        UserError: PEFT refuses the configuration.
    """
    from peft import PeftModel, get_peft_config, get_peft_model

    arguments = {**adapter, "peft_type": str(adapter["peft_type"]).upper(), "task_type": task_type}
    try:
        if location := arguments.pop("adapter_name_or_path", None):
            wrapped = PeftModel.from_pretrained(model, location, is_trainable=True)
        else:
            wrapped = get_peft_model(model, get_peft_config(arguments))
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"adapter: {str(error).splitlines()[0]}") from None
    let_disable(wrapped)
    head = wrapped.get_output_embeddings()
    if head is not None and not hasattr(head, "bias"):
        # TRL 1.16 asks every head for its bias; PEFT's wrapper of one with trained tokens forwards only the weight.
        object.__setattr__(head, "bias", head.original_module.bias)
    to_float32(wrapped)
    return wrapped


def to_float32(model: Any) -> None:
    """Keep the trainable tensors in float32: in bfloat16 a step of 2e-5 is lost in rounding for most elements."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def load_adapter(base: Any, folder: Path) -> Any:
    """Return the base with the adapter that `folder` holds, for inference.

    Args:
        base: the model that the adapter was trained on; its vocabulary grows where the adapter's has grown.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        UserError: there is no adapter, or it does not fit the base.
    """
    if adapter_file(folder) is None:
        raise UserError(f"{str(folder)!r} holds no adapter (adapter_model.safetensors){adapter_advice(folder)}")
    from peft import PeftModel

    rows = _vocabulary_size(base, folder)
    if rows is not None and rows != base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(rows, mean_resizing=False)
    try:
        loaded = PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"the adapter in {str(folder)!r} does not fit its base: {' '.join(lines[:2])}") from error
    let_disable(loaded)
    return loaded


def let_disable(model: Any) -> None:
    """Let a model with virtual tokens be looked at without them where it generates nothing.

    PEFT 0.21.2 swaps `prepare_inputs_for_generation` too, and fails where there is none, as in classifiers.
    """
    if not hasattr(model, "prepare_inputs_for_generation"):
        model.prepare_inputs_for_generation = None
        model.base_model.prepare_inputs_for_generation = None


def _vocabulary_size(base: Any, folder: Path) -> int | None:
    """Return how many tokens the base must have for the adapter in `folder`, None where as many as it has.

    That is what the embedding has that was saved with the adapter; or else, as PEFT's own loader has it, what the
    tokenizer beside the adapter has more than the base.
    """
    from safetensors import safe_open
    from transformers import AutoTokenizer

    embedding = base.get_input_embeddings()
    name = next(name for name, module in base.named_modules() if module is embedding)
    with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (no mapping)
            if key.endswith(f"{name}.weight"):
                return int(tensors.get_slice(key).get_shape()[0])
    if not (folder / "tokenizer_config.json").is_file():
        return None
    size = len(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False))
    return size if size > embedding.weight.shape[0] else None

"""Models of known shapes with random weights, made on the spot: as fast and as large as real ones, and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.errors import RecipeError, UserError, did_you_mean
from hf_peft_recipes.fresh_process import last_words, run_module
from hf_peft_recipes.plan.shapes import four_bit_bytes, read_shape
from hf_peft_recipes.supervision import follow_parent

EMBEDDED = "embedded"
"""The model that ships in the package, as it is."""


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    }  # fmt: skip


def _qwen2(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    return {**_llama(hidden, intermediate, layers, heads, kv_heads, vocabulary), "model_type": "qwen2"}


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _llama(64, 160, 2, 4, 2, 2048),
    "s": _llama(256, 688, 4, 8, 4, 4096),
    "m": _llama(384, 1024, 8, 6, 3, 16384),
    "l": _llama(576, 1536, 12, 9, 3, 32768),
    "135m": _llama(576, 1536, 30, 9, 3, 49152),
    "0.5b": _qwen2(896, 4864, 24, 14, 2, 151936),
    "1b": {**_llama(2048, 8192, 16, 32, 8, 128256), "head_dim": 64},
    "3b": {**_llama(3072, 8192, 28, 24, 8, 128256), "head_dim": 128},
    "8b": {**_llama(4096, 14336, 32, 32, 8, 128256), "tie_word_embeddings": False},
    "32b": {**_qwen2(5120, 27648, 64, 40, 8, 152064), "tie_word_embeddings": False},
    "70b": {**_llama(8192, 28672, 80, 64, 8, 128256), "head_dim": 128, "tie_word_embeddings": False},
}
"""Name to what its config.json says. From 135m on those of SmolLM2-135M, Qwen2.5-0.5B, Llama-3.2-1B, Llama-3.2-3B,
Llama-3.1-8B, Qwen2.5-32B and Llama-3.1-70B, as their config.json on the Hub have them; the small ones are for a CPU."""

_SHARD_BYTES = 4 * 2**30
_SPREAD = 0.02
"""Standard deviation of the weights: transformers' own `initializer_range` of these models."""


def find_shape(name: str) -> dict[str, Any]:
    """Return the config values of the shape `name`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in SHAPES:
        known = [EMBEDDED, *SHAPES]
        raise UserError(f"unknown shape {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
    return SHAPES[name]


def model_folder(folder: Path, name: str, quantized: bool = False) -> Path:
    """Return where `make_model` puts the model.

    Args:
        folder: below which models lie.
        name: one of SHAPES, or `embedded`.
        quantized: whether its linear layers are in NF4.

    Raises:
        UserError: an unknown name.
    """
    if name == EMBEDDED:
        return MODEL_DIR
    find_shape(name)
    return folder / (f"{name}-nf4" if quantized else name)


def file_bytes(name: str, quantized: bool = False) -> int:
    """Return the size of the model's weights on the disk; 0 for the embedded model, which is there anyway.

    Args:
        name: one of SHAPES, or `embedded`.
        quantized: whether its linear layers are in NF4.
    """
    if name == EMBEDDED:
        return 0
    tensors = read_shape(find_shape(name), name).tensors()
    return sum(
        four_bit_bytes(tensor.elements, True) if quantized and tensor.linear else 2 * tensor.elements
        for tensor in tensors
    )


def make_model(folder: Path, name: str, quantized: bool = False) -> Path:
    """Return a folder with a bfloat16 model of the shape and the embedded model's tokenizer.

    It is made in a process of its own: one that has touched the GPU holds half a gigabyte of it to its end, which what
    is measured next would be without.

    Args:
        folder: below which it is made, unless it is there already.
        name: one of SHAPES, or `embedded`.
        quantized: whether the linear layers are written in NF4 with double quantisation: a base that would not fit on
            the disk otherwise.

    Raises:
        UserError: an unknown name.
        RecipeError: it could not be made, for want of disk for one.
    """
    target = model_folder(folder, name, quantized)
    if not (target / "config.json").is_file():
        finished = run_module(__name__, str(target), name, *(["nf4"] if quantized else []))
        if finished.returncode:
            raise RecipeError(f"model {target.name} cannot be made: {last_words(finished)}")
    return target


def write_model(target: Path, name: str, quantized: bool) -> None:
    """Write the model of a shape into its folder, in this process.

    Args:
        target: the folder.
        name: one of SHAPES.
        quantized: see `make_model`.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

    values = find_shape(name)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    kind = values["model_type"]
    config = CONFIG_MAPPING[kind](
        **{key: value for key, value in values.items() if key != "model_type"}, dtype="bfloat16",
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    _write_weights(target, _tensors(model, quantized))
    if quantized:
        config.quantization_config = {"quant_method": "bitsandbytes", **_NF4, "bnb_4bit_quant_storage": "uint8"}
    tokenizer.save_pretrained(target)
    config.architectures = [type(model).__name__]
    # Last: a folder with a config is a whole one.
    config.save_pretrained(target)


_NF4 = {
    "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}  # fmt: skip


def _tensors(model: Any, quantized: bool) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the weights, one at a time; made on the GPU where there is one, which is fast."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator(device).manual_seed(0)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, parameter in model.named_parameters():
        # A tied head is listed once, as the embedding; norms are the vectors whose name says so.
        if parameter.dim() == 1:
            value = torch.ones if name.endswith("norm.weight") else torch.zeros
            yield name, value(parameter.shape, dtype=torch.bfloat16)
            continue
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device).normal_(0, _SPREAD, generator=draw)
        if quantized and name in linear and not name.startswith("lm_head"):
            yield from _four_bit(name, weight)
        else:
            yield name, weight.cpu()


def _four_bit(name: str, weight: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors as which bitsandbytes keeps a weight, by the names that transformers reads them under."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    yield name, packed.cpu()
    for key, value in state.as_dict(packed=True).items():
        yield f"{name}.{key}", value.cpu()


def _write_weights(folder: Path, tensors: Iterator[tuple[str, Any]]) -> None:
    """Write shards as they fill up, so that memory holds one of them, and the index."""
    from safetensors.torch import save_file

    shard: dict[str, Any] = {}
    places: dict[str, str] = {}
    held, total = 0, 0

    def flush() -> None:
        nonlocal shard, held
        file = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard, held = {}, 0

    for name, tensor in tensors:
        shard[name] = tensor.contiguous()
        size = tensor.numel() * tensor.element_size()
        held, total = held + size, total + size
        if held >= _SHARD_BYTES:
            flush()
    if shard:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


if __name__ == "__main__":
    follow_parent()
    write_model(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["nf4"])

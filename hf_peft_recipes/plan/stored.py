"""What a base's files hold, by their headers alone: types, sizes, whether there is a head, how they are quantised."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.fingerprint import local_reader, read_headers
from hf_peft_recipes.plan.configs import read_quantization
from hf_peft_recipes.plan.job import ITEM_BYTES, Job
from hf_peft_recipes.plan.shapes import Shape

OFF = 0.01
"""By how much of their bytes quantised files may differ from their closed form: each holds a few words more."""
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Safetensors' name of a type to torch's; what weights that are not quantised are kept in."""
_NO_WEIGHTS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")
"""Buffers that old checkpoints hold, and no model loads."""
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class StoredWeights:
    """The weights in a base's files."""

    sizes: Mapping[str, tuple[int, ...]]
    """Name to shape."""
    total_bytes: int
    elements: int
    dtype: str | None
    """In which most of them are kept, torch's name; None where they are in no type that can be trained in."""

    def ties_head(self) -> bool | None:
        """Return whether head and embedding are one; None where the files name neither as usual."""
        return HEAD not in self.sizes if EMBEDDING in self.sizes else None


def read_stored(folder: Path, source: str) -> StoredWeights | None:
    """Return what the safetensors of a folder hold, None where it has none. Reads no weights.

    Args:
        folder: of the base.
        source: its name, for messages.

    Raises:
        UserError: the files are broken, or some are missing.
    """
    if not any(folder.glob("*.safetensors")):
        return None
    try:
        headers = read_headers(local_reader(folder))
        tensors = {
            name: entry
            for _, header in headers.values()
            for name, entry in header.items()
            if name != "__metadata__" and not name.endswith(_NO_WEIGHTS)
        }
        sizes = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
        kept: Counter[str] = Counter()
        for entry in tensors.values():
            first, last = entry["data_offsets"]
            kept[entry["dtype"]] += last - first
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"weights of model {source!r} cannot be read: {error}") from None
    floats = [kind for kind, _ in kept.most_common() if kind in _DTYPES]
    elements = sum(math.prod(size) for size in sizes.values())
    return StoredWeights(sizes, kept.total(), elements, _DTYPES[floats[0]] if floats else None)


def as_stored(config: Mapping[str, Any], stored: StoredWeights | None) -> dict[str, Any]:
    """Return the config with what the files know better: the type where it states none, and whether the head is tied.

    Args:
        config: of the base.
        stored: what its files hold, None where they are not at hand.
    """
    kept = dict(config)
    if stored is None:
        return kept
    if not (config.get("dtype") or config.get("torch_dtype")) and stored.dtype:
        kept["dtype"] = stored.dtype
    if (tied := stored.ties_head()) is not None:
        kept["tie_word_embeddings"] = tied
    return kept


def reconcile(job: Job, shape: Shape, config: Mapping[str, Any], stored: StoredWeights | None) -> tuple[Job, list[str]]:
    """Return the job with weights as large as the files have them, and in words where config.json says otherwise.

    Args:
        job: as the recipe and the config make it.
        shape: as the config has it, its head tied as the files have it.
        config: of the base, as it stands in its file.
        stored: what the files hold, None where they are not at hand.
    """
    told = [] if stored is None else _disagreements(config, shape, stored)
    quantization = read_quantization(config)
    if quantization is None:
        if stored is not None and (extra := stored.elements - shape.parameters()):
            side = "more" if extra > 0 else "fewer"
            told.append(f"the files hold {abs(extra):,} numbers {side} than config.json tells of")
            job = replace(job, extra_elements=extra)
        return job, told
    if not quantization.bits:
        known = "weights as large as the files" if stored else "planned as if they were not, for want of the files"
        told.append(f"the weights are quantised by {quantization.method}, which is not known here: {known}")
        return replace(job, weight_bytes=stored.total_bytes if stored else None), told
    if stored is not None:
        item_bytes = ITEM_BYTES.get(str(stored.dtype), job.item_bytes)
        expected = sum(
            job.quantized_bytes(tensor) if job.quantizes(tensor) else tensor.elements * item_bytes
            for tensor in shape.tensors()
        )
        if abs(stored.total_bytes - expected) > OFF * expected:
            told.append(f"the files hold {stored.total_bytes:,} bytes, where config.json makes {expected:,}")
            job = replace(job, weight_bytes=stored.total_bytes)
    return job, told


def _disagreements(config: Mapping[str, Any], shape: Shape, stored: StoredWeights) -> list[str]:
    told = []
    said = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    if stored.dtype and said and said != stored.dtype and read_quantization(config) is None:
        told.append(f"config.json says {said}, the files hold {stored.dtype}")
    stated = config.get("tie_word_embeddings")
    if stated is not None and bool(stated) != shape.tied:
        own = ("an untied head", "none") if shape.tied else ("a tied head", "one of its own")
        told.append(f"config.json says {own[0]}, the files hold {own[1]}")
    if read_quantization(config) is None:
        for tensor in shape.tensors():
            size = stored.sizes.get(tensor.name)
            if size is not None and math.prod(size) != tensor.elements:
                found, made = " × ".join(map(str, size)), f"{tensor.rows} × {tensor.columns}"
                told.append(f"{tensor.name} is {found} in the files, {made} by config.json")
                break
    return told

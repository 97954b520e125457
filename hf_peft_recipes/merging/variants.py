"""The models that an adapter can be merged into, in one table, and the merge itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_peft_recipes import adapters, models, quantizers
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.heads import find_head
from hf_peft_recipes.merging.request import VARIANT_NAMES
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.quantized import section_of


@dataclass(frozen=True)
class Variant:
    """One way to merge; the adapter is always added to whole weights."""

    summary: str
    dequantizes: bool = False
    """Whether these are the quantised base's, made whole again, rather than those from before quantisation."""
    requantizes: bool = False
    """Whether the merged model is quantised."""


VARIANTS = {
    "bf16": Variant("into the base as it was before quantisation"),
    # Dequantised weights lie on the grid of the 4-bit numbers: quantised again after the merge, they go back there and
    # most of the adapter is lost. Measured so and from whole weights: KL 0.46 and 0.13 nats a token (stories260K on
    # GSM8K), 0.0090 and 0.000066 (the embedded model on its demo).
    "requantized": Variant("into the base as it was before quantisation, then quantised", requantizes=True),
    "dequantized": Variant("into the quantised base, made whole again", dequantizes=True),
}
"""The likeliest winner stands last: the model that was scored last need not be made again."""
assert set(VARIANTS) == set(VARIANT_NAMES)


def possible_variants(recipe: ResolvedRecipe) -> list[str]:
    """Return the names of the variants that differ for the run's base, in the order in which they are scored."""
    config, _ = models.load_configs(recipe.section("model"))
    if getattr(config, "quantization_config", None):
        # Its whole weights are not to be had.
        return ["requantized", "dequantized"]
    return list(VARIANTS) if recipe.section("quantization") else ["bf16"]


def build(name: str, recipe: ResolvedRecipe, adapter: Path, loading: Mapping[str, Any]) -> Any:
    """Return the base of the variant with the adapter merged into it: a plain model of transformers.

    Args:
        name: a key of `VARIANTS`.
        recipe: the run's.
        adapter: the adapter's folder.
        loading: keyword arguments that the base's head needs.

    Raises:
        UserError: the base cannot be loaded, or PEFT cannot merge this adapter into it.
    """
    variant, quantization = VARIANTS[name], recipe.section("quantization")
    model_class, kept = find_head(recipe.objective).model_class(), quantization if variant.dequantizes else None
    base = models.load_base(model_class, recipe.section("model"), kept, loading)
    if getattr(base, "hf_quantizer", None) is not None:
        quantization = quantization or section_of(base.config.quantization_config.to_dict())
        # What is made whole has the type that the files were made in, the rest that which the run asked for.
        base = quantizers.dequantize(base).to(base.get_input_embeddings().weight.dtype)
        _forget_quantized_files(base)
    # Of the names as they will be again once the adapter is gone.
    dtypes = {key: parameter.dtype for key, parameter in base.named_parameters()}
    merged = merge_adapter(adapters.load_adapter(base, adapter), dtypes, base.dtype)
    if not variant.requantizes:
        return merged
    wanted = quantization or {}
    return models.quantize(merged, models.beside_head(wanted, ()) if loading else wanted).eval()


def merge_adapter(model: Any, dtypes: Mapping[str, torch.dtype], dtype: torch.dtype) -> Any:
    """Return the base of a `PeftModel` with the adapter in its weights.

    PEFT adds an adapter in float32 to a weight in bfloat16 and rounds once. Its `safe_merge` rounds the adapter's share
    first, which on the embedded model is 90 times as far from the unmerged one (measured with PEFT 0.21.2).

    Args:
        model: the base with its active adapter; it is used up.
        dtypes: parameter names of the base to the dtypes that they are to have in the end.
        dtype: that of parameters which `dtypes` does not name.

    Raises:
        UserError: PEFT cannot merge this adapter into this base, or what comes out is not finite.
    """
    untie(model)
    try:
        merged = model.merge_and_unload()
    except torch.OutOfMemoryError:
        # A RuntimeError too, and nobody's mistake: the caller leaves this way to merge out.
        raise
    except (ValueError, NotImplementedError, RuntimeError, AttributeError, TypeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"PEFT cannot merge this adapter: {lines[0]}") from error
    for key, parameter in merged.named_parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtypes.get(key, dtype))
        if not torch.isfinite(parameter).all():
            raise UserError(f"the merged weight {key} is not finite: the adapter is broken")
    return merged.eval()


def untie(model: Any) -> None:
    """Give input and output embedding a weight each, where they share one and the adapter changes only one of them.

    Merged into the shared weight, the change would reach the other one too (peft#2777).
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = model.get_base_model()
    sides = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    adapted = [isinstance(side, BaseTunerLayer) for side in sides]
    plain = [side.get_base_layer() if isinstance(side, BaseTunerLayer) else side for side in sides]
    weights = [getattr(side, "weight", None) for side in plain]
    if adapted[0] is not adapted[1] and weights[0] is not None and weights[0] is weights[1]:
        plain[1].weight = torch.nn.Parameter(weights[1].detach().clone(), requires_grad=False)
        inner.config.tie_word_embeddings = False


def _forget_quantized_files(model: Any) -> None:
    """Let a model be saved whole whose files were in 4 bits.

    transformers 5.23 undoes on saving what it did on loading, and knows no way back from 4-bit files.
    """
    conversions = getattr(model, "_weight_conversions", None) or []
    of_quantizer = [
        any(type(operation).__module__.endswith("bitsandbytes") for operation in getattr(conversion, "operations", []))
        for conversion in conversions
    ]
    if any(of_quantizer):
        model._weight_conversions = [
            conversion for conversion, drop in zip(conversions, of_quantizer, strict=True) if not drop
        ]

"""How answers are drawn. What can be chosen are upstream's own options of generation, by their own names."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from hf_peft_recipes.errors import UserError, did_you_mean

_DECIDED = {"do_sample", "num_beams", "use_cache", "max_length", "guidance_scale"}
"""Read upstream too, and not to be chosen: a temperature of 0 is greedy; beams and guidance decode otherwise."""


@dataclass(frozen=True)
class Settings:
    """What one draw is made with."""

    max_new_tokens: int
    greedy: bool
    options: Mapping[str, Any]
    """Keyword arguments of `transformers.GenerationConfig`. Nothing comes from the base's own generation config."""

    def processors(self, model: Any, stop_ids: Sequence[int], width: int) -> Any:
        """Return upstream's processors of scores, in upstream's order.

        Args:
            model: a causal language model, with or without an adapter.
            stop_ids: ids that end an answer.
            width: tokens of a prompt, padding included.

        Raises:
            UserError: a value is refused.
        """
        from transformers import GenerationConfig

        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        try:
            config = GenerationConfig(**self.options, max_new_tokens=self.max_new_tokens, do_sample=not self.greedy)
            # As `generate` leaves it, before it asks for the processors.
            config._eos_token_tensor = torch.tensor(stop_ids, device=base.device) if stop_ids else None
            return base._get_logits_processor(config, input_ids_seq_length=width, device=base.device)
        except (TypeError, ValueError) as error:
            raise UserError(f"sampling: {error}") from None


@cache
def names() -> frozenset[str]:
    """Return what can be chosen: what upstream's function that changes scores reads, and the longest answer."""
    from transformers import GenerationMixin

    read = set(re.findall(r"generation_config\.([a-z]\w*)", inspect.getsource(GenerationMixin._get_logits_processor)))
    return frozenset({name for name in read if not name.startswith("encoder_")} - _DECIDED | {"max_new_tokens"})


def read_settings(sampling: Mapping[str, Any]) -> Settings:
    """Return the settings that a mapping asks for.

    Args:
        sampling: `max_new_tokens`, and any of `names()`; a `temperature` of 0 takes the likeliest token every time.

    Raises:
        UserError: an unknown name, or no `max_new_tokens`.
    """
    for name in sampling:
        if name not in names():
            raise UserError(f"sampling: unknown option {name!r}{did_you_mean(name, names())}")
    longest = sampling.get("max_new_tokens")
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise UserError(f"sampling: max_new_tokens is {longest!r}; a number of tokens is wanted")
    greedy = sampling.get("temperature") == 0
    left_out = {"max_new_tokens", *(["temperature"] if greedy else [])}
    return Settings(longest, greedy, {name: value for name, value in sampling.items() if name not in left_out})

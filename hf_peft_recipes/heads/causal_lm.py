"""The next token, after all those before it."""

from collections.abc import Sequence
from typing import Any

from hf_peft_recipes.generation import generate, inference

TASK_TYPE = "CAUSAL_LM"


def model_class() -> Any:
    """Return the class that loads the base."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def loading(labels: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    """Return nothing: the base has its head."""
    return {}


def answer(model: Any, ids: Sequence[int], stop_ids: Sequence[int], pad_id: int, tokens: int) -> list[int]:
    """Return the greedy answer; see `Head`."""
    return generate(model, [ids], stop_ids, pad_id, tokens, 1)[0]


def values(model: Any, ids: Sequence[int], answer: Sequence[int]) -> Any:
    """Return log-probabilities of shape (len(answer) + 1, vocabulary): of each answer token, and of what follows it."""
    import torch

    with inference(model):
        tokens = torch.tensor([[*ids, *answer]], device=model.device)
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    # Counted from the end: soft prompts add positions at the start.
    return torch.log_softmax(logits[0, -len(answer) - 1 :].float(), -1).cpu()

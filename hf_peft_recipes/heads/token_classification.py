"""One of several labels for every token."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_peft_recipes.generation import inference
from hf_peft_recipes.heads.padding import PADDED_TO
from hf_peft_recipes.heads.sequence_classification import answer, label_names

__all__ = ["TASK_TYPE", "answer", "collator", "loading", "logits", "model_class", "values"]

TASK_TYPE = "TOKEN_CLS"


def model_class() -> Any:
    """Return the class that loads the base."""
    from transformers import AutoModelForTokenClassification

    return AutoModelForTokenClassification


def loading(labels: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    """Return number and names of the labels; see `Head`."""
    return label_names(labels)


def values(model: Any, ids: Sequence[int], answer: Sequence[int]) -> Any:
    """Return log-probabilities of shape (tokens, labels); see `Head`."""
    import torch

    with inference(model):
        tokens = torch.tensor([list(ids)], device=model.device)
        found = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return torch.log_softmax(found[0, -len(ids) :].float(), -1).cpu()


def collator(tokenizer: Any) -> Any:
    """Return what pads rows of token ids with a label, or -100, for each token."""
    from transformers import DataCollatorForTokenClassification

    return DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=PADDED_TO)


def logits(model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return logits and targets of the tokens that have a label, and their rows; see `Scoring`."""
    given = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    # Counted from the end: soft prompts add positions at the start.
    found = model(**given).logits[:, -batch["labels"].shape[1] :]
    kept = (batch["labels"] != -100).to(found.device)
    return found[kept].float(), batch["labels"].to(found.device)[kept], kept.nonzero()[:, 0].cpu()

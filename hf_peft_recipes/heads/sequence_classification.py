"""One of several labels for a whole text; without labels one number, its score."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_peft_recipes.generation import inference
from hf_peft_recipes.heads.padding import PADDED_TO

TASK_TYPE = "SEQ_CLS"


def model_class() -> Any:
    """Return the class that loads the base."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification


def loading(labels: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    """Return number and names of the labels; see `Head`."""
    # Decoders look for a row's last token, and know it by the padding behind it.
    return label_names(labels) | {"pad_token_id": tokenizer.pad_token_id}


def label_names(labels: Sequence[str]) -> dict[str, Any]:
    """Return the labels as a config has them."""
    if not labels:
        return {"num_labels": 1}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def answer(model: Any, ids: Sequence[int], stop_ids: Sequence[int], pad_id: int, tokens: int) -> list[int]:
    """Return nothing: no token is written."""
    return []


def values(model: Any, ids: Sequence[int], answer: Sequence[int]) -> Any:
    """Return log-probabilities of shape (1, labels), or the score, of shape (1, 1); see `Head`."""
    import torch

    with inference(model):
        tokens = torch.tensor([list(ids)], device=model.device)
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.float().cpu()
    return torch.log_softmax(logits, -1) if logits.shape[-1] > 1 else logits


def collator(tokenizer: Any) -> Any:
    """Return what pads rows of token ids, each with its label's number."""
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PADDED_TO)


def logits(model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return logits, targets and numbers of the rows; see `Scoring`."""
    import torch

    given = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    found = model(**given).logits.float()
    return found, batch["labels"].to(found.device), torch.arange(len(found))

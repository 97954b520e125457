"""One number for a whole text: how good an answer is."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.heads.padding import PADDED_TO
from hf_peft_recipes.heads.sequence_classification import TASK_TYPE, answer, loading, model_class, values

__all__ = ["TASK_TYPE", "answer", "collator", "loading", "logits", "model_class", "values"]


def collator(tokenizer: Any) -> Any:
    """Return what pads rows of token ids; it leaves other columns out, as a score is of the whole row."""
    from transformers import DataCollatorWithPadding

    pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PADDED_TO)
    return lambda rows: pad([{"input_ids": row["input_ids"]} for row in rows])


def logits(model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return the score and 0 as the logits of a choice, of shape (rows, 2): whether an answer is better than one that
    scores 0 (Bradley and Terry 1952); targets are none, so 0; and the rows."""
    import torch

    given = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    scores = model(**given).logits.float()[:, 0]
    zeros = torch.zeros_like(scores)
    return torch.stack([scores, zeros], -1), zeros.long(), torch.arange(len(scores))

"""A text written by a decoder that reads another one's encoding."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_peft_recipes.generation import generate, inference
from hf_peft_recipes.heads.padding import PADDED_TO

TASK_TYPE = "SEQ_2_SEQ_LM"


def model_class() -> Any:
    """Return the class that loads the base."""
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM


def loading(labels: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    """Return nothing: the base has its head."""
    return {}


def answer(model: Any, ids: Sequence[int], stop_ids: Sequence[int], pad_id: int, tokens: int) -> list[int]:
    """Return the greedy answer; see `Head`."""
    return generate(model, [ids], stop_ids, pad_id, tokens, 1)[0]


def values(model: Any, ids: Sequence[int], answer: Sequence[int]) -> Any:
    """Return log-probabilities of shape (len(answer) + 1, vocabulary): of each answer token, and of what follows it."""
    import torch

    start = model.config.decoder_start_token_id
    with inference(model):
        tokens = torch.tensor([list(ids)], device=model.device)
        written = torch.tensor([[start, *answer]], device=model.device)
        found = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), decoder_input_ids=written).logits
    return torch.log_softmax(found[0].float(), -1).cpu()


def collator(tokenizer: Any) -> Any:
    """Return what pads sources and targets; the model shifts the targets itself."""
    from transformers import DataCollatorForSeq2Seq

    return DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=PADDED_TO)


def logits(model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return logits and targets of the targets' tokens, and their rows; see `Scoring`."""
    given = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask", "labels")}
    found = model(**given).logits
    kept = given["labels"] != -100
    return found[kept].float(), given["labels"][kept], kept.nonzero()[:, 0].cpu()

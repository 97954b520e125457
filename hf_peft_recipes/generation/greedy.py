"""Greedy answers, many at a time or streamed. Generation never changes the mode in which the model is left."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hf_peft_recipes.sharding import is_split


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Run the block with the model in evaluation mode and without gradients; restore its mode afterwards."""
    training = model.training
    model.eval()
    # What FSDP gathers in inference mode it could not train with afterwards.
    apart = torch.no_grad() if is_split(model) else torch.inference_mode()
    try:
        with apart:
            yield
    finally:
        model.train(training)


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[list[int]]:
    """Return the greedy continuation of every prompt, as token ids without the stop token.

    Args:
        model: a causal language model, or an encoder and a decoder.
        prompts: token ids, one sequence a prompt.
        stop_ids: ids that end an answer.
        pad_id: fills shorter prompts on the left; on the right where an encoder reads them.
        max_new_tokens: the longest answer.
        batch_size: prompts at a time; neighbours in length go together, so that little is padded.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    apart = bool(model.config.is_encoder_decoder)
    with inference(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            width = max(len(prompts[index]) for index in batch)
            fills = [[pad_id] * (width - len(prompts[index])) for index in batch]
            rows = [_beside(prompts[index], fill, apart) for index, fill in zip(batch, fills, strict=True)]
            masks = [
                _beside([1] * len(prompts[index]), [0] * len(fill), apart)
                for index, fill in zip(batch, fills, strict=True)
            ]
            produced = go_on(model, rows, masks, stop_ids, pad_id, max_new_tokens)
            for index, row in zip(batch, produced, strict=True):
                # A decoder apart begins with a token of its own, not with the prompt.
                answers[index] = until_stop(row[1 if apart else width :], stop_ids)
    return answers


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    write: Callable[[str], Any],
) -> str:
    """Return the greedy answer to one prompt, handing its text to `write` as it is produced.

    Args:
        model: a causal language model.
        tokenizer: turns ids to text.
        prompt: token ids.
        stop_ids: ids that end the answer.
        max_new_tokens: the longest answer.
        write: takes each new piece of text.
    """
    from transformers import TextStreamer

    class Writer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            write(text)

    apart = bool(model.config.is_encoder_decoder)
    streamer = Writer(tokenizer, skip_prompt=not apart, skip_special_tokens=True)
    with inference(model):
        produced = go_on(
            model, [list(prompt)], [[1] * len(prompt)], stop_ids, tokenizer.pad_token_id, max_new_tokens, streamer
        )
    return str(
        tokenizer.decode(until_stop(produced[0][1 if apart else len(prompt) :], stop_ids), skip_special_tokens=True)
    )


def go_on(
    model: Any,
    rows: list[list[int]],
    masks: list[list[int]],
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    streamer: Any = None,
    processors: Sequence[Any] = (),
) -> list[list[int]]:
    """Return rows of token ids as upstream's `generate` makes them, what it was given before what it adds.

    Args:
        model: a causal language model, or an encoder and a decoder.
        rows: token ids, all of one length.
        masks: 1 where a row has a token of its own, 0 where it is filled up.
        stop_ids: ids that end an answer.
        pad_id: fills up rows that have ended.
        max_new_tokens: the longest answer.
        streamer: of transformers, for one row.
        processors: of transformers' kind: each makes other scores of the scores, the likeliest token of which is taken.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(stop_ids), pad_token_id=pad_id, use_cache=True
    )
    produced = model.generate(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(masks, device=model.device),
        generation_config=config,
        streamer=streamer,
        logits_processor=list(processors),
    )
    result: list[list[int]] = produced.tolist()
    return result


def _beside(row: Sequence[int], fill: list[int], right: bool) -> list[int]:
    """Return the row filled up on its left, or on its right."""
    return [*row, *fill] if right else [*fill, *row]


def until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Return the ids before the first one that ends an answer."""
    stops = [at for at, number in enumerate(ids) if number in stop_ids]
    return list(ids[: stops[0]] if stops else ids)

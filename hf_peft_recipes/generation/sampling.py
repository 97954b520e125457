"""Many answers to many prompts: those of like length together, as many at a time as memory allows."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.generation.decoding import Drawn, Wanted, draw_batch
from hf_peft_recipes.generation.draws import make_key
from hf_peft_recipes.generation.settings import Settings, read_settings
from hf_peft_recipes.models import context_length

MOST_ROWS, MOST_ROWS_ON_CPU = 256, 128
"""Answers at a time. On the CPU that was tried a token took longer with more; on GPUs it was not measured."""
MEMORY_SHARE = 0.5
"""Of what is free: the estimate leaves out workspaces and the holes of allocators."""


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    samples: int,
    sampling: Mapping[str, Any],
    seed: int,
    stop_ids: Sequence[int],
    pad_id: int,
    budget_bytes: int | None = None,
) -> Iterator[tuple[int, list[Drawn]]]:
    """Yield numbers of prompts with the answers to each, as they come, those to the longest prompts first.

    An answer depends on the seed, its prompt and its number, not on what else is asked (see `draws`).

    Args:
        model: a causal language model, with or without an adapter, or an encoder and a decoder.
        prompts: token ids.
        samples: answers to each.
        sampling: `max_new_tokens`, `temperature`, `top_p` … as `transformers.GenerationConfig` calls them; a
            temperature of 0 is greedy, and all answers to a prompt are then one.
        seed: of the draws.
        stop_ids: ids that end an answer.
        pad_id: fills up shorter prompts.
        budget_bytes: what a batch may take; None for a share of what is free.

    Raises:
        UserError: an option is refused, or a prompt is empty or leaves no room for an answer; before anything is drawn.
    """
    settings = read_settings(sampling)
    settings.processors(model, stop_ids, 1)
    room = None if model.config.is_encoder_decoder else context_length(model.config)
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {number} is empty")
        if room is not None and len(prompt) >= room:
            raise UserError(f"prompt {number} has {len(prompt)} tokens, and the model takes {room} with the answer")
    wanted = _wanted(prompts, 1 if settings.greedy else samples, settings, seed, room)
    return _batches(model, wanted, samples, settings, stop_ids, pad_id, budget_bytes or free_bytes(model.device))


def _wanted(
    prompts: Sequence[Sequence[int]], samples: int, settings: Settings, seed: int, room: int | None
) -> deque[Wanted]:
    """Return the answers that are to be drawn, those to the longest prompts first."""
    wanted, seen = list[Wanted](), Counter[tuple[int, ...]]()
    for number, prompt in enumerate(prompts):
        limit = min(settings.max_new_tokens, (room or len(prompt) + settings.max_new_tokens) - len(prompt))
        repeated = seen[tuple(prompt)]
        seen[tuple(prompt)] += 1
        for at in range(samples):
            wanted.append(Wanted(number, prompt, limit, make_key(seed, prompt, repeated, at)))
    return deque(sorted(wanted, key=lambda each: -len(each.prompt)))


def _batches(
    model: Any,
    wanted: deque[Wanted],
    samples: int,
    settings: Settings,
    stop_ids: Sequence[int],
    pad_id: int,
    budget_bytes: int,
) -> Iterator[tuple[int, list[Drawn]]]:
    left = Counter(each.number for each in wanted)
    found: dict[int, list[Drawn]] = {}
    most = MOST_ROWS_ON_CPU if model.device.type == "cpu" else MOST_ROWS
    while wanted:
        width = len(wanted[0].prompt)
        fitting = budget_bytes // answer_bytes(model, width, settings.max_new_tokens)
        batch = [wanted.popleft() for _ in range(max(1, min(most, fitting, len(wanted))))]
        drawn = _fitting(model, batch, settings, stop_ids, pad_id)
        for each, answer in zip(batch, drawn, strict=True):
            answers = found.setdefault(each.number, [])
            answers.append(answer)
            if len(answers) == left[each.number]:
                del found[each.number]
                yield each.number, answers * samples if settings.greedy else answers


def _fitting(
    model: Any, batch: Sequence[Wanted], settings: Settings, stop_ids: Sequence[int], pad_id: int
) -> list[Drawn]:
    """Return the answers of a batch; of its halves, where it does not fit after all."""
    try:
        return draw_batch(model, batch, settings, stop_ids, pad_id)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # Not above: what is raised holds on to all that the batch has filled.
    torch.cuda.empty_cache()
    halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
    return [drawn for half in halves for drawn in _fitting(model, half, settings, stop_ids, pad_id)]


def answer_bytes(model: Any, width: int, new_tokens: int) -> int:
    """Return about what an answer takes while it is drawn: cache, activations of its prompt, scores.

    Args:
        model: a model of transformers, with or without an adapter.
        width: tokens of its prompt.
        new_tokens: the most that it may have.
    """
    config, item = model.config.get_text_config(), model.dtype.itemsize
    # T5 and its kin say this by other names, which their configs translate; what keeps a state has no heads.
    hidden, heads = config.hidden_size, getattr(config, "num_attention_heads", None) or 1
    head = getattr(config, "head_dim", None) or hidden // heads
    # A key and a value a layer.
    cache = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head * item
    # Of one layer at a time: the residual stream, queries, keys and values, and the three parts of a gated product.
    activations = (4 * hidden + 3 * (getattr(config, "intermediate_size", None) or 4 * hidden)) * item
    # Scores, sorted, with their places, and cumulated in float64.
    return (width + new_tokens) * cache + width * activations + 40 * config.vocab_size


def free_bytes(device: Any) -> int:
    """Return what a batch may take of a device's memory."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(MEMORY_SHARE * (torch.cuda.mem_get_info(device)[0] + unused))
    import psutil

    return int(MEMORY_SHARE * psutil.virtual_memory().available)

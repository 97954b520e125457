"""One batch of answers, token by token: prompts are read once, rows that have ended leave.

Upstream's `generate` would read a prompt anew for each answer to it, and compute every row until the last one ends. It
still answers where a pass through the model is not all that a token takes: virtual tokens, an encoder apart.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any

import torch

from hf_peft_recipes.generation.draws import numbers, pick
from hf_peft_recipes.generation.greedy import go_on, inference, until_stop
from hf_peft_recipes.generation.settings import Settings

LEAVE_SHARE = 1 / 8
"""How many rows have ended when they leave: taking them out copies the cache of the others once."""


@dataclass(frozen=True)
class Wanted:
    """An answer that is to be drawn."""

    number: int
    """Of its prompt."""
    prompt: Sequence[int]
    """Token ids."""
    limit: int
    """The most tokens that it may have."""
    key: int
    """Of its share of chance, see `draws`."""


@dataclass(frozen=True)
class Drawn:
    """An answer."""

    ids: list[int]
    """Without the token that ended it."""
    stopped: bool
    """Whether the model ended it, rather than the limit."""


def draw_batch(
    model: Any, batch: Sequence[Wanted], settings: Settings, stop_ids: Sequence[int], pad_id: int
) -> list[Drawn]:
    """Return the answers, in order; the model is left in the mode in which it was.

    Args:
        model: a causal language model, with or without an adapter, or an encoder and a decoder.
        batch: answers that are drawn together; those to one prompt are neighbours.
        settings: of the draws.
        stop_ids: ids that end an answer.
        pad_id: fills up shorter prompts.
    """
    keys = [wanted.key for wanted in batch]
    uniform = None if settings.greedy else numbers(keys, settings.max_new_tokens, model.device)
    with inference(model):
        draw = _draw if decodes(model) else _draw_upstream
        rows = draw(model, batch, settings, uniform, stop_ids, pad_id)
    cut = [row[: wanted.limit] for row, wanted in zip(rows, batch, strict=True)]
    answers = [until_stop(row, stop_ids) for row in cut]
    return [Drawn(ids, len(ids) < len(row)) for ids, row in zip(answers, cut, strict=True)]


def decodes(model: Any) -> bool:
    """Return whether a pass through the model is all that a token takes; upstream's `generate` does the rest."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config.is_encoder_decoder or base._is_stateful or not base._supports_default_dynamic_cache():
        return False
    if base is model:
        return True
    adapter = model.active_peft_config
    # An activated LoRA looks for its words in the prompt, which later passes do not see.
    return not (
        adapter.is_prompt_learning or adapter.is_adaption_prompt or getattr(adapter, "alora_invocation_tokens", None)
    )


def _draw(
    model: Any, batch: Sequence[Wanted], settings: Settings, uniform: Any, stop_ids: Sequence[int], pad_id: int
) -> list[list[int]]:
    from transformers import DynamicCache

    device, stops = model.device, torch.tensor(stop_ids, device=model.device)
    owners, prompts = _prompts(batch)
    width = max(map(len, prompts))
    given, mask, positions = (part.to(device) for part in _padded(prompts, width, pad_id))
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    scores = _pass(model, given, mask, positions, cache)[owners]
    cache.batch_select_indices(owners.to(device))
    # Processors look for repetitions: what fills up a row must be no token that it does not have.
    ids = torch.where(mask.bool(), given, given.gather(1, mask.argmax(1, keepdim=True)))[owners]
    mask, positions = mask[owners], positions[owners, -1:]
    limits = torch.tensor([wanted.limit for wanted in batch], device=device)
    rows, ended = torch.arange(len(batch), device=device), torch.zeros(len(batch), dtype=torch.bool, device=device)
    process, answers = settings.processors(model, stop_ids, width), [list[int]() for _ in batch]
    for step in range(max(wanted.limit for wanted in batch)):
        tokens = pick(process(ids, scores.float()), None if uniform is None else uniform[rows, step])
        ids = torch.cat([ids, tokens[:, None]], 1)
        ended |= torch.isin(tokens, stops) | (limits[rows] == step + 1)
        leaving = int(ended.sum())
        if leaving == len(ended):
            break
        if leaving >= LEAVE_SHARE * len(ended):
            _collect(answers, rows[ended], ids[ended], width)
            staying = (~ended).nonzero().flatten()
            cache.batch_select_indices(staying)
            ids, mask, positions, rows, ended = (part[staying] for part in (ids, mask, positions, rows, ended))
        # One that has ended stays where it is: behind the last position there may be none.
        positions, mask = positions + ~ended[:, None], torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        scores = _pass(model, ids[:, -1:], mask, positions, cache)
    _collect(answers, rows, ids, width)
    return answers


def _draw_upstream(
    model: Any, batch: Sequence[Wanted], settings: Settings, uniform: Any, stop_ids: Sequence[int], pad_id: int
) -> list[list[int]]:
    """Return the same by upstream's `generate`, which takes what its processors leave."""
    answers, start = list[list[int]](), 0
    apart = bool(model.config.is_encoder_decoder)
    # Between virtual tokens and a prompt padding would count as a distance, and a state would read it.
    for _, alike in groupby(batch, key=lambda wanted: None if apart else len(wanted.prompt)):
        part = list(alike)
        share = None if uniform is None else uniform[start : start + len(part)]
        answers += _generate(model, part, settings, share, stop_ids, pad_id)
        start += len(part)
    return answers


def _generate(
    model: Any, batch: Sequence[Wanted], settings: Settings, uniform: Any, stop_ids: Sequence[int], pad_id: int
) -> list[list[int]]:
    apart, width = bool(model.config.is_encoder_decoder), max(len(wanted.prompt) for wanted in batch)
    process, steps = settings.processors(model, stop_ids, 1 if apart else width), count()

    def drawn(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = next(steps)
        tokens = pick(process(ids, scores.float()), None if uniform is None else uniform[:, step])
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)

    fills = [width - len(wanted.prompt) for wanted in batch]
    given = [[*wanted.prompt, *[pad_id] * fill] for wanted, fill in zip(batch, fills, strict=True)]
    masks = [[1] * (width - fill) + [0] * fill for fill in fills]
    longest = max(wanted.limit for wanted in batch)
    rows = go_on(model, given, masks, stop_ids, pad_id, longest, processors=[drawn])
    # A decoder apart begins with a token of its own, not with the prompt.
    return [row[1 if apart else width :] for row in rows]


def _prompts(batch: Sequence[Wanted]) -> tuple[torch.Tensor, list[Sequence[int]]]:
    """Return which prompt each answer belongs to, and the prompts, each once."""
    places: dict[int, int] = {}
    owners = [places.setdefault(wanted.number, len(places)) for wanted in batch]
    prompts = {wanted.number: wanted.prompt for wanted in batch}
    return torch.tensor(owners), [prompts[number] for number in places]


def _padded(
    prompts: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, mask and positions of shape (prompts, width), the padding on the left."""
    fills = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[*[pad_id] * fill, *prompt] for fill, prompt in zip(fills, prompts, strict=True)])
    mask = torch.tensor([[0] * fill + [1] * (width - fill) for fill in fills])
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def _pass(model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
    """Return the scores of what follows the last token, of shape (rows, vocabulary)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Some architectures count by the mask (ALiBi).
    counted = {"position_ids": positions} if "position_ids" in inspect.signature(base.forward).parameters else {}
    logits = model(
        input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1, **counted
    ).logits
    scores: torch.Tensor = logits[:, -1]
    return scores


def _collect(answers: list[list[int]], rows: torch.Tensor, ids: torch.Tensor, width: int) -> None:
    for row, answer in zip(rows.tolist(), ids[:, width:].tolist(), strict=True):
        answers[row] = answer

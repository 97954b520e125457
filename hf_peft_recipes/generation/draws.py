"""Chance that belongs to an answer, not to the batch that it is drawn in.

Each answer has numbers of its own, one a token, from a generator that counts (Philox: Salmon et al. 2011, «Parallel
random numbers: as easy as 1, 2, 3»), whose key is made of the seed, the prompt's tokens and the answer's number. So a
run that was cut off and goes on, another order or another size of batches draw the same answers, but for the rounding
that batches of other shapes bring: hardly ever another token in float32, often enough to be seen in bfloat16.
"""

import hashlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy
import torch


def make_key(seed: int, prompt: Sequence[int], repeated: int, sample: int) -> int:
    """Return the key of an answer, of 128 bits.

    Args:
        seed: of all draws.
        prompt: its token ids.
        repeated: how many times the same prompt came before, where it is asked several times.
        sample: number of the answer to the prompt.
    """
    told = array("q", [seed, repeated, sample, *prompt]).tobytes()
    return int.from_bytes(hashlib.sha256(told).digest()[:16], "little")


def numbers(keys: Sequence[int], count: int, device: Any) -> torch.Tensor:
    """Return numbers from 0 to below 1 of shape (keys, count); more of them begin as fewer do.

    Args:
        keys: of answers.
        count: numbers of each.
        device: that gets them.
    """
    drawn = [numpy.random.Generator(numpy.random.Philox(key=key)).random(count) for key in keys]
    return torch.from_numpy(numpy.stack(drawn)).to(precise(device)).to(device)


def precise(device: Any) -> torch.dtype:
    """Return the type in which probabilities are added up: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def pick(scores: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
    """Return a token id a row: where its number falls in the cumulated probabilities, or the likeliest one.

    Args:
        scores: logits of shape (rows, vocabulary), -inf for a token that cannot be drawn.
        uniform: of shape (rows,), from 0 to below 1; None for the likeliest token.
    """
    if uniform is None:
        return scores.argmax(-1)
    cumulated = scores.softmax(-1, dtype=torch.float32).cumsum(-1, dtype=precise(scores.device))
    whole = cumulated[:, -1:]
    # Rounding must not carry a number to the end, behind which there is no token.
    below = torch.minimum(uniform[:, None] * whole, whole.nextafter(torch.zeros_like(whole)))
    return torch.searchsorted(cumulated, below, right=True).squeeze(-1)

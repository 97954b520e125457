"""A server with OpenAI's interface, asked several conversations at a time."""

import hashlib
import inspect
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol

from hf_peft_recipes.endpoint import Endpoint
from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.generation.engines import Conversation, Counts, Engine, Served

NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
"""What a server has another name for than transformers; the rest goes as it is, and a server refuses what it lacks."""
AT_ONCE = 16
"""Conversations that are under way together: enough that a server which batches them is not left waiting."""


class Answering(Protocol):
    """What answers one conversation."""

    def complete(self, messages: Conversation, *, n: int, **sampling: Any) -> list[str]:
        """Return `n` answers."""


class ServerPolicy(Engine):
    """Answers of a server. Whether a seed is kept to is the server's affair."""

    def __init__(self, endpoint: Answering, at_once: int = AT_ONCE) -> None:
        """Args:
        endpoint: may be called by several threads.
        at_once: conversations that are under way together.
        """
        self.endpoint, self.at_once = endpoint, at_once
        self.counts = Counts()

    def draw(
        self, conversations: Sequence[Conversation], samples: int, sampling: Mapping[str, Any], seed: int
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield numbers of conversations with the answers to each, as they come; each is asked with a seed of its own.

        Raises:
            UserError: the server gave another number of answers. Whatever the endpoint raises comes through, once all
                that was under way has come; what was not is not asked any more.
        """
        asked = {NAMES.get(name, name): value for name, value in sampling.items()}
        seeds, started, failed = make_seeds(seed, conversations), time.perf_counter(), None
        with ThreadPoolExecutor(self.at_once) as pool:
            waiting = {
                pool.submit(self._complete, turns, samples, {**asked, "seed": seeds[number]}): number
                for number, turns in enumerate(conversations)
            }
            try:
                for finished in as_completed(waiting):
                    if finished.cancelled():
                        continue
                    if (error := finished.exception()) is not None:
                        failed = failed or error
                        for other in waiting:
                            other.cancel()
                        continue
                    self.counts.answers += samples
                    self.counts.seconds += time.perf_counter() - started
                    yield waiting[finished], finished.result()
                    started = time.perf_counter()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if failed is not None:
            raise failed

    def _complete(self, turns: Conversation, samples: int, asked: Mapping[str, Any]) -> list[str]:
        texts = [text.strip() for text in self.endpoint.complete(turns, n=samples, **asked)]
        if len(texts) != samples:
            raise UserError(f"the server gave {len(texts)} answers where {samples} were asked for")
        return texts


def make_seeds(seed: int, conversations: Sequence[Conversation]) -> list[int]:
    """Return a seed of 31 bits for each conversation, the same wherever it stands; of those that are alike, several.

    Args:
        seed: of all draws.
        conversations: turns up to the answer.
    """
    told = [json.dumps([seed, [[turn["role"], turn["content"]] for turn in turns]]) for turns in conversations]
    seen, seeds = Counter[str](), list[int]()
    for text in told:
        # Servers add the answer's number to it, and some hold it in a signed word.
        seeds.append(int.from_bytes(hashlib.sha256(f"{text}{seen[text]}".encode()).digest()[:4], "little") >> 1)
        seen[text] += 1
    return seeds


def make(served: Served, options: Mapping[str, Any]) -> ServerPolicy:
    """Return the policy; the model that is trained has no part in it.

    Args:
        served: is not looked at.
        options: those of `endpoint.Endpoint`, `base_url` and `model` first of all, and `at_once`; or an `endpoint`.

    Raises:
        UserError: no address or model, or an unknown option.
    """
    given = dict(options)
    at_once, endpoint = int(given.pop("at_once", AT_ONCE)), given.pop("endpoint", None)
    known = [name for name in inspect.signature(Endpoint).parameters if name not in ("budget", "cache")]
    for name in given:
        if name not in known:
            raise UserError(f"engine server: unknown option {name!r}{did_you_mean(name, known)}")
    if endpoint is None and (missing := next((name for name in ("base_url", "model") if name not in given), None)):
        raise UserError(f"engine server: {missing} is missing (feedback.engine_options.{missing})")
    return ServerPolicy(endpoint or Endpoint(**given), at_once)

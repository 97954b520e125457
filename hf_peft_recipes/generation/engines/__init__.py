"""Who answers: the model in this process, vLLM beside it, or a server."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean

ENGINES = ("transformers", "vllm", "server")
"""Files of this folder; each has `make(served, options)`, which returns an `Engine`."""

Conversation = Sequence[Mapping[str, str]]
"""`role` and `content` of each turn, up to the answer."""


@dataclass(frozen=True)
class Served:
    """The model that is to answer, as each engine may want it."""

    renderer: Any
    """A `data.Renderer`, made for its tokenizer."""
    stop_ids: Sequence[int]
    """Ids that end an answer."""
    model: Any = None
    """In memory, with its adapter."""
    bf16: bool = False
    """Whether it runs under autocast."""
    base: str = ""
    """Path or Hub id of the base."""
    revision: str | None = None
    adapter: Path | None = None
    """The folder of the adapter's files; None for the base itself."""
    adapter_rank: int = 0
    """The largest rank of the adapter."""


@dataclass
class Counts:
    """What an engine did so far; a server tells of answers and seconds alone."""

    answers: int = 0
    answer_tokens: int = 0
    cut_off: int = 0
    """Answers that the limit ended, not the model."""
    prompt_tokens: int = 0
    """Each prompt once, however many answers there are to it."""
    seconds: float = 0.0


class Engine(ABC):
    """What answers conversations."""

    counts: Counts

    @abstractmethod
    def draw(
        self, conversations: Sequence[Conversation], samples: int, sampling: Mapping[str, Any], seed: int
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield numbers of conversations with the answers to each, without white space around them, as they come.

        Args:
            conversations: turns up to the answer.
            samples: answers to each.
            sampling: `max_new_tokens`, `temperature` (0 is greedy), `top_p` … by the names of transformers.
            seed: of the draws. What a conversation is answered depends on it, and not on the other conversations, as
                far as the engine keeps to it: who is cut off asks for the rest alone.

        Raises:
            UserError: an option is refused, or a conversation cannot be rendered or leaves no room for an answer.
        """

    def answer(
        self, conversations: Sequence[Conversation], samples: int, sampling: Mapping[str, Any], seed: int
    ) -> list[list[str]]:
        """Return the same, all at once and in order."""
        answers: list[list[str]] = [[] for _ in conversations]
        for number, texts in self.draw(conversations, samples, sampling, seed):
            answers[number] = texts
        return answers


def make_policy(name: str, served: Served, options: Mapping[str, Any] | None = None) -> Engine:
    """Return the engine of that name.

    Args:
        name: one of `ENGINES`.
        served: the model that is to answer.
        options: what can be chosen of the engine, by the names that it has for it.

    Raises:
        UserError: there is no such engine, it is not installed, or it refuses an option.
    """
    if name not in ENGINES:
        raise UserError(f"unknown engine {name!r}{did_you_mean(name, ENGINES)} (known: {', '.join(ENGINES)})")
    module: Any = import_module(f"hf_peft_recipes.generation.engines.{name}")
    engine: Engine = module.make(served, options or {})
    return engine

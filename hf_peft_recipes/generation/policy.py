"""A model in memory as one that answers conversations, and says how likely it holds an answer."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from hf_peft_recipes.data import Example, Renderer
from hf_peft_recipes.data.formats import BadRowError
from hf_peft_recipes.data.rendering import TokenRow
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.generation.divergence import Divergence, WithoutAdapter, measure
from hf_peft_recipes.generation.engines import Conversation, Counts, Engine
from hf_peft_recipes.generation.likelihoods import token_losses
from hf_peft_recipes.generation.sampling import sample


class TransformersPolicy(Engine):
    """A causal language model of transformers; an adapter stays beside its base, as it is trained."""

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        stop_ids: Sequence[int],
        *,
        bf16: bool = False,
        budget_bytes: int | None = None,
    ) -> None:
        """Args:
        model: with or without an adapter.
        renderer: made for its tokenizer.
        stop_ids: ids that end an answer.
        bf16: whether it runs under autocast, as it is trained.
        budget_bytes: what a batch of answers may take; None for a share of what is free.
        """
        self.model, self.renderer, self.stop_ids = model, renderer, list(stop_ids)
        self.bf16, self.budget_bytes = bf16, budget_bytes
        self.counts = Counts()

    def draw(
        self, conversations: Sequence[Conversation], samples: int, sampling: Mapping[str, Any], seed: int
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield numbers of conversations with the answers to each, as they come, those to the longest ones first.

        The answers are the same whatever else is asked, but for the rounding of batches (see `draws`).
        """
        tokenizer, started = self.renderer.tokenizer, time.perf_counter()
        prompts = [self._served(conversation) for conversation in conversations]
        drawn = sample(
            self.model, prompts, samples, sampling, seed, self.stop_ids, tokenizer.pad_token_id, self.budget_bytes
        )
        while True:
            with self._autocast():
                found = next(drawn, None)
            self.counts.seconds += time.perf_counter() - started
            if found is None:
                return
            number, answers = found
            self.counts.answers += len(answers)
            self.counts.answer_tokens += sum(len(answer.ids) for answer in answers)
            self.counts.cut_off += sum(not answer.stopped for answer in answers)
            self.counts.prompt_tokens += len(prompts[number])
            texts = tokenizer.batch_decode([answer.ids for answer in answers], skip_special_tokens=True)
            yield number, [str(text).strip() for text in texts]
            # What the caller does between two answers takes no time of ours.
            started = time.perf_counter()

    def log_likelihoods(self, pairs: Sequence[tuple[Conversation, str]]) -> list[tuple[float, int]]:
        """Return the log-probability of each answer in nats, and the number of its tokens, the end token included.

        Args:
            pairs: conversations up to the answer, and the answer.

        Raises:
            UserError: a conversation cannot be rendered.
        """
        with self._autocast():
            losses = token_losses(self.model, self._rows(pairs), None)
        return [(-loss, tokens) for loss, tokens in losses]

    def kl(self, pairs: Sequence[tuple[Conversation, str]], reference: Any = None) -> Divergence:
        """Return how far the model has moved from another: KL(model ‖ reference) at each token of the answers.

        It is exact: over the whole vocabulary at every token, not an estimate from the tokens that were drawn. On
        answers that the model gave itself it is the penalty of learning from rewards.

        Args:
            pairs: conversations up to the answer, and the answer.
            reference: a model with the same vocabulary; None for the base below the adapter.

        Raises:
            UserError: a conversation cannot be rendered, or there is neither a reference nor an adapter.
        """
        if reference is None and not hasattr(self.model, "disable_adapter"):
            raise UserError("a model without an adapter has no base to be compared with; a reference is wanted")
        with self._autocast():
            return measure(self.model, reference or WithoutAdapter(self.model), self._rows(pairs), None)

    def _served(self, conversation: Conversation) -> list[int]:
        try:
            return self.renderer.serve(conversation)
        except BadRowError as error:
            raise UserError(str(error)) from None

    def _rows(self, pairs: Sequence[tuple[Conversation, str]]) -> list[TokenRow]:
        """Return the conversations with their answers as rows in which the answer alone carries loss."""
        renderer = copy.copy(self.renderer)
        renderer.loss_on = "last_turn"
        turns = [(*conversation, {"role": "assistant", "content": answer}) for conversation, answer in pairs]
        rows = list[TokenRow]()
        for row in renderer.rows([Example(each) for each in turns]):
            if isinstance(row, BadRowError):
                raise UserError(str(row))
            rows.append(row)
        return rows

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16)

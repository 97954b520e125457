"""From an example to token ids and labels. What is trained on is, token for token, what is served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.data.formats import BadRowError, Example
from hf_peft_recipes.errors import UserError

IGNORED = -100
"""The label of a token that carries no loss: PyTorch's `ignore_index`."""


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one example, and its labels: the id where a token carries loss, -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


class Renderer:
    """Renders examples with one tokenizer: by its chat template, or as prompt, separator, answer and end token."""

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], loss_on: str, separator: str) -> None:
        """Args:
        tokenizer: a fast tokenizer of transformers.
        stop_ids: the ids on which generation stops.
        loss_on: `assistant`, `last_turn` or `all`.
        separator: between prompt and answer where there is no chat template; "" joins them as they are.
        """
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self._stop_ids = frozenset(stop_ids)
        self._loss_on = loss_on
        self.separator = separator
        if tokenizer.eos_token_id is None and not self.has_template:
            raise UserError("the tokenizer has neither an end token nor a chat template: the model could never stop")

    def row(self, example: Example) -> TokenRow:
        """Return the example as token ids and labels.

        Raises:
            BadRowError: the example has no answer, or its answers cannot be located in the template's rendering.
        """
        if example.text is not None:
            ids = [*self.tokenizer(example.text).input_ids]
            if self.tokenizer.eos_token_id is not None and ids[-1:] != [self.tokenizer.eos_token_id]:
                ids.append(self.tokenizer.eos_token_id)
            return TokenRow(ids, list(ids))
        spans, ids = self._template_spans(example) if self.has_template else self._plain_span(example)
        if self._loss_on == "all":
            return TokenRow(ids, list(ids))
        if self._loss_on == "last_turn":
            spans = spans[-1:]
        labels = [IGNORED] * len(ids)
        for start, end in spans:
            labels[start:end] = ids[start:end]
        return TokenRow(ids, labels)

    def prompt(self, example: Example) -> list[int]:
        """Return the token ids that the model is given when it is to produce the example's last answer."""
        return self.serve(example.messages[:-1])

    def serve(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a conversation up to where the model's answer begins.

        Raises:
            BadRowError: more than one turn, and the tokenizer has no chat template to render them with.
        """
        if self.has_template:
            return self._render(messages, add_generation_prompt=True)
        return self._without_end(self._plain_prompt(messages))

    def _template_spans(self, example: Example) -> tuple[list[tuple[int, int]], list[int]]:
        messages = example.messages
        ids = self._render(messages)
        spans = []
        for index, turn in enumerate(messages):
            if turn["role"] != "assistant" or index < example.supervised_from:
                continue
            before = self._render(messages[:index], add_generation_prompt=True)
            after = self._render(messages[: index + 1])
            if ids[: len(after)] != after or after[: len(before)] != before:
                raise BadRowError(
                    f"the chat template renders turn {index + 1} differently once more turns follow or when it is "
                    f"served, so its tokens cannot be told apart"
                )
            # What a template puts after the end token (a line end, mostly) is never generated.
            stops = [at for at in range(len(before), len(after)) if after[at] in self._stop_ids]
            spans.append((len(before), stops[-1] + 1 if stops else len(after)))
        if not spans:
            raise BadRowError("no assistant turn to learn from")
        return spans, ids

    def _plain_span(self, example: Example) -> tuple[list[tuple[int, int]], list[int]]:
        text, answer = self._plain_prompt(example.messages[:-1]), example.messages[-1]["content"]
        prompt = self._without_end(text)
        whole = self._without_end(text + answer)
        # Where the seam falls inside a token, the answer is encoded apart: the prompt must be what is served.
        ids = whole if whole[: len(prompt)] == prompt else prompt + self._encode(answer)
        ids = [*ids, self.tokenizer.eos_token_id]
        return [(len(prompt), len(ids))], ids

    def _plain_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if len(messages) != 1 or messages[0]["role"] != "user":
            raise BadRowError("a conversation of several turns needs a chat template, and the tokenizer has none")
        text = str(messages[0]["content"])
        return text if not self.separator or text[-1:].isspace() else text + self.separator

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> list[int]:
        if not messages:
            return []
        try:
            return list(
                self.tokenizer.apply_chat_template(
                    list(messages), add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
                )
            )
        except Exception as error:
            # Templates refuse conversations by raising inside Jinja, each in its own words.
            raise BadRowError(f"the chat template refuses the conversation: {error}") from None

    def _without_end(self, text: str) -> list[int]:
        ids = [*self.tokenizer(text).input_ids]
        return ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids

    def _encode(self, text: str) -> list[int]:
        return [*self.tokenizer(text, add_special_tokens=False).input_ids]

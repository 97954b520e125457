"""From examples to token ids and labels. What is trained on is, token for token, what is served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_peft_recipes.data.formats import BadRowError, Example
from hf_peft_recipes.data.layout import Layout, learn_layout
from hf_peft_recipes.data.turns import MARKS, Turn, find_turns
from hf_peft_recipes.errors import UserError

IGNORED = -100
"""The label of a token that carries no loss: PyTorch's `ignore_index`."""


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one example, and its labels: the id where a token carries loss, -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]
    stops: bool = True
    """Whether the last answer ends with a token on which generation stops."""

    @property
    def length(self) -> int:
        """The number of its tokens."""
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """The number of its tokens that carry loss."""
        return len(self.labels) - self.labels.count(IGNORED)

    def cut(self, limit: int, splits: bool) -> list["TokenRow"]:
        """Return the first `limit` tokens, and where it `splits` those after them too, as further rows."""
        starts = range(0, len(self.input_ids), limit) if splits else [0]
        return [TokenRow(self.input_ids[start : start + limit], self.labels[start : start + limit]) for start in starts]

    def marked(self) -> list[tuple[int, bool]]:
        """Return every token, and whether it carries loss."""
        return [(token, label != IGNORED) for token, label in zip(self.input_ids, self.labels, strict=True)]

    def columns(self) -> dict[str, Any]:
        """Return the row as a table has it."""
        return {"input_ids": self.input_ids, "labels": self.labels}


@dataclass(frozen=True)
class _Draft:
    """An example as text, before it is cut into tokens."""

    text: str
    turns: list[Turn] = field(default_factory=list)
    special_tokens: bool = False
    """Whether the tokenizer adds its own, as it does where no template writes them."""
    ends: bool = False
    """Whether the end token is still to be appended."""


class Renderer:
    """Renders examples with one tokenizer: by its chat template, or as prompt, separator, answer and end token."""

    labels: tuple[str, ...] = ()
    """None: what a text goes on with is no choice of a few."""

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], loss_on: str, separator: str) -> None:
        """Args:
        tokenizer: a fast tokenizer of transformers.
        stop_ids: the ids on which generation stops.
        loss_on: `auto`, `all`, `assistant`, `last_turn` or `completion`, see `recipes/objectives/sft.yaml`.
        separator: between prompt and answer where there is no chat template; "" joins them as they are.
        """
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self.in_parts = self.has_template and self._wants_parts()
        self._layout = self._learned() if self.has_template else None
        self.as_served = False
        """Whether an answer is trained behind what is served before it, where the template's conversation has another
        text there; earlier answers of such a conversation carry no loss."""
        self.closes = False
        """Whether the end token is added where the template puts none behind an answer."""
        self.stop_ids = frozenset(stop_ids)
        self.loss_on = loss_on
        self.separator = separator
        if not tokenizer.is_fast:
            raise UserError("the tokenizer is a slow one, which does not tell where in a text its tokens stand")
        if tokenizer.eos_token_id is None and not self.has_template:
            raise UserError("the tokenizer has neither an end token nor a chat template: the model could never stop")

    def rows(self, examples: Sequence[Example]) -> list[TokenRow | BadRowError]:
        """Return each example as token ids and labels, or why it cannot be rendered; in order."""
        drafts = [self._draft(example) for example in examples]
        encodings: list[Any] = [None] * len(drafts)
        for special in (False, True):
            some = [
                at for at, draft in enumerate(drafts) if isinstance(draft, _Draft) and draft.special_tokens is special
            ]
            if some:
                texts = [drafts[at].text for at in some]  # type: ignore[union-attr]
                encoded = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False)
                for at, encoding in zip(some, encoded.encodings, strict=True):
                    encodings[at] = encoding
        return [
            self._token_row(draft, encoding) if isinstance(draft, _Draft) else draft
            for draft, encoding in zip(drafts, encodings, strict=True)
        ]

    def row(self, example: Example) -> TokenRow:
        """Return the example as token ids and labels.

        Raises:
            BadRowError: the example has no answer, or its answers cannot be located in the template's rendering.
        """
        row = self.rows([example])[0]
        if isinstance(row, BadRowError):
            raise row
        return row

    def prompt(self, example: Example) -> list[int]:
        """Return the token ids that the model is given when it is to produce the example's last answer."""
        return self.serve(example.before_reference, example.tools)

    def serve(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Return the token ids of a conversation up to where the model's answer begins.

        Raises:
            BadRowError: more than one turn, and the tokenizer has no chat template to render them with.
        """
        if self.has_template:
            return self._encode(self._render(messages, True, tools))
        return self._without_end([*self.tokenizer(self._plain_prompt(messages)).input_ids])

    def _draft(self, example: Example) -> "_Draft | BadRowError":
        try:
            if example.text is not None:
                return _Draft(example.text, [], special_tokens=True, ends=True)
            wanted = self._wanted(example)
            if not self.has_template:
                prompt = self._plain_prompt(example.before_reference)
                text = prompt + str(example.reference)
                return _Draft(text, [Turn(len(prompt), len(text), len(text))], special_tokens=True, ends=True)
            text, turns = self._found(example, wanted)
            if self.as_served and turns and turns[-1].served is not None:
                return _served_draft(text, turns[-1])
            return _Draft(text, turns, ends=self.closes and bool(turns))
        except BadRowError as error:
            return error

    def _found(self, example: Example, wanted: Sequence[int]) -> tuple[str, list[Turn]]:
        """Return the conversation's text and the wanted turns in it."""

        def render(messages: Sequence[Mapping[str, Any]], opens: bool) -> str:
            return self._render(messages, opens, example.tools)

        found = self._layout.find(example.messages, wanted, render) if self._layout and not example.tools else None
        return found or find_turns(example.messages, wanted, render)

    def _wanted(self, example: Example) -> list[int]:
        """Return the indices of the turns that carry loss; none under `all`, where every token does."""
        if self.loss_on == "all" and self.has_template:
            return []
        first = 0 if self.loss_on == "assistant" else example.supervised_from
        turns = [at for at, turn in enumerate(example.messages) if turn["role"] == "assistant" and at >= first]
        if not turns:
            raise BadRowError("no assistant turn to learn from")
        return turns[-1:] if self.loss_on == "last_turn" else turns

    def _token_row(self, draft: _Draft, encoding: Any) -> TokenRow:
        ids = list(encoding.ids)
        if draft.special_tokens:
            ids = self._without_end(ids)
        spans, stops = [(0, len(ids))], True
        if draft.turns and self.loss_on != "all":
            starts = [_first_token(encoding, turn.start, len(draft.text)) for turn in draft.turns]
            if not all(clean for _, clean in starts) or not self._begins_as_served(draft, ids, starts[0][0]):
                return self._apart(draft)
            spans, stops = self._spans(draft, encoding, ids, [start for start, _ in starts])
        if draft.ends and self.tokenizer.eos_token_id is not None and not (self.closes and stops):
            ids.append(self.tokenizer.eos_token_id)
            spans[-1] = (spans[-1][0], len(ids))
            stops = self.tokenizer.eos_token_id in self.stop_ids
        labels = [IGNORED] * len(ids)
        for start, end in spans:
            labels[start:end] = ids[start:end]
        return TokenRow(ids, labels, stops)

    def _spans(
        self, draft: _Draft, encoding: Any, ids: list[int], starts: list[int]
    ) -> tuple[list[tuple[int, int]], bool]:
        """Return the token spans of the turns, each with what ends it, and whether generation stops on the last."""
        spans, stops = [], False
        for turn, start in zip(draft.turns, starts, strict=True):
            end, _ = _first_token(encoding, turn.limit, len(draft.text))
            # Some families end a turn by the token that opens the next one.
            until = end + 1 if end < len(ids) and ids[end] in self.stop_ids else end
            closes, _ = _first_token(encoding, turn.closes_after, len(draft.text))
            closing = next((at for at in range(max(closes, start), until) if ids[at] in self.stop_ids), None)
            stops = closing is not None
            spans.append((start, end if closing is None else closing + 1))
        return spans, stops

    def _apart(self, draft: _Draft) -> "TokenRow":
        """Return the row with its prompt and its answers encoded apart: a token of the whole text spans a seam."""
        ids: list[int] = []
        labels: list[int] = []
        at, stops = 0, False
        for turn in draft.turns:
            before = self.tokenizer(draft.text[at : turn.start], add_special_tokens=draft.special_tokens and not at)
            prompt = self._without_end([*before.input_ids]) if draft.special_tokens else [*before.input_ids]
            answer = self._encode(draft.text[turn.start : turn.limit])
            closing = [number for number, token in enumerate(answer) if token in self.stop_ids]
            kept = closing[-1] + 1 if closing else len(answer)
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer[:kept] + [IGNORED] * (len(answer) - kept)
            at, stops = turn.limit, bool(closing)
        rest = self._encode(draft.text[at:])
        ids, labels = ids + rest, labels + [IGNORED] * len(rest)
        if draft.ends:
            ids.append(self.tokenizer.eos_token_id)
            labels.append(self.tokenizer.eos_token_id)
            stops = self.tokenizer.eos_token_id in self.stop_ids
        return TokenRow(ids, labels, stops)

    def _begins_as_served(self, draft: _Draft, ids: list[int], start: int) -> bool:
        """Whether the prompt's tokens are those of the prompt alone; where a template marks the seam, they are."""
        if not draft.special_tokens:
            return True
        prompt = self._without_end([*self.tokenizer(draft.text[: draft.turns[0].start]).input_ids])
        return ids[:start] == prompt

    def _plain_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if len(messages) != 1 or messages[0]["role"] != "user":
            raise BadRowError("a conversation of several turns needs a chat template, and the tokenizer has none")
        text = str(messages[0]["content"])
        return text if not self.separator or text[-1:].isspace() else text + self.separator

    def _render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, tools: Sequence[Mapping[str, Any]]
    ) -> str:
        if not messages:
            return ""
        if self.in_parts:
            messages = [_in_parts(message) for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, add_generation_prompt=add_generation_prompt, tokenize=False
            )
            return str(text)
        except Exception as error:
            # Templates refuse conversations by raising inside Jinja, each in its own words.
            raise BadRowError(f"the chat template refuses the conversation: {error}") from None

    def _learned(self) -> Layout | None:
        return learn_layout(lambda messages, opens: self._render(messages, opens, ()))

    def _wants_parts(self) -> bool:
        """Whether the template reads contents as lists of parts only, as those of vision-language models do."""
        mark = MARKS[0]
        for content in (mark, [{"type": "text", "text": mark}]):
            try:
                text = self.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            except Exception:
                continue
            if mark in text:
                return isinstance(content, list)
        return False

    def _without_end(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def _encode(self, text: str) -> list[int]:
        return [*self.tokenizer(text, add_special_tokens=False).input_ids]


def _served_draft(text: str, turn: Turn) -> _Draft:
    """Return the answer behind what is served before it."""
    served = str(turn.served)
    moved = len(served) - turn.start
    return _Draft(served + text[turn.start :], [Turn(len(served), turn.closes_after + moved, turn.limit + moved)])


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message.get("content") or ""}]}


def _first_token(encoding: Any, character: int, length: int) -> tuple[int, bool]:
    """Return the first token that begins at the character or later, and whether none lies across the place.

    What a tokenizer drops (blanks, mostly) belongs to no token, so the search goes on from there.
    """
    for at in range(character, length):
        token = encoding.char_to_token(at)
        if token is not None:
            across = encoding.token_to_chars(token)[0] < character
            return int(token) + across, not across
    return len(encoding.ids), True

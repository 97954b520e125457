"""What an example becomes to be trained on: a row of tokens, a pair of answers, an answer that is judged, a label."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hf_peft_recipes.data.encoders import Maker
from hf_peft_recipes.data.formats import BadRowError, Example
from hf_peft_recipes.data.rendering import IGNORED, Renderer, TokenRow
from hf_peft_recipes.errors import UserError


class Row(Protocol):
    """One example, ready to be cut to size."""

    @property
    def stops(self) -> bool:
        """Whether its answer ends with a token on which generation stops."""

    @property
    def length(self) -> int:
        """The number of its tokens; of several sequences the longest one's."""

    @property
    def supervised(self) -> int:
        """The number of its tokens that carry loss."""

    def cut(self, limit: int, splits: bool) -> Sequence["Row"]:
        """Return the row with no sequence longer than `limit`, or more than one; none where nothing is left of it."""

    def columns(self) -> dict[str, Any]:
        """Return the row as a table has it."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    chosen: TokenRow
    rejected: TokenRow

    @property
    def stops(self) -> bool:
        """Whether both answers end with a token on which generation stops."""
        return self.chosen.stops and self.rejected.stops

    @property
    def length(self) -> int:
        """The number of tokens of the longer side."""
        return max(self.chosen.length, self.rejected.length)

    @property
    def supervised(self) -> int:
        """The number of tokens of both answers."""
        return self.chosen.supervised + self.rejected.supervised

    def cut(self, limit: int, splits: bool) -> "list[Pair]":
        """Return the pair with both sides cut; nothing where only the prompt is left of one."""
        pair = Pair(self.chosen.cut(limit, False)[0], self.rejected.cut(limit, False)[0])
        return [pair] if pair.chosen.supervised and pair.rejected.supervised else []

    def columns(self) -> dict[str, Any]:
        """Return the row as a table has it: both sides whole, prompt included."""
        sides = {"chosen": self.chosen, "rejected": self.rejected}
        return {f"{side}_{name}": value for side, row in sides.items() for name, value in row.columns().items()}


@dataclass(frozen=True)
class Judged:
    """An answer, and whether it is wanted."""

    answer: TokenRow
    wanted: bool

    @property
    def stops(self) -> bool:
        """Whether the answer ends with a token on which generation stops."""
        return self.answer.stops

    @property
    def length(self) -> int:
        """The number of its tokens."""
        return self.answer.length

    @property
    def supervised(self) -> int:
        """The number of tokens of the answer."""
        return self.answer.supervised

    def cut(self, limit: int, splits: bool) -> "list[Judged]":
        """Return the row cut; nothing where only the prompt is left."""
        row = Judged(self.answer.cut(limit, False)[0], self.wanted)
        return [row] if row.supervised else []

    def columns(self) -> dict[str, Any]:
        """Return the row as a table has it."""
        return {**self.answer.columns(), "label": self.wanted}


@dataclass(frozen=True)
class Prompt:
    """What the model is asked, for answers of its own."""

    input_ids: list[int]
    """As it is served."""
    text: str
    conversation: str | None
    """JSON of its messages, where there is a chat template."""
    reference: str | None

    @property
    def stops(self) -> bool:
        """True: generation stops where it stops."""
        return True

    @property
    def length(self) -> int:
        """The number of its tokens."""
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """None of its tokens carries loss."""
        return 0

    def cut(self, limit: int, splits: bool) -> "list[Prompt]":
        """Return the prompt where it fits; half of one is another question."""
        return [self] if self.length <= limit else []

    def columns(self) -> dict[str, Any]:
        """Return the row as a table has it."""
        return {
            "prompt": self.text, "prompt_ids": self.input_ids, "conversation": self.conversation,
            "reference": self.reference,
        }  # fmt: skip


Made = Sequence[Row] | BadRowError
"""What becomes of an example: rows, or why none."""


def _texts(renderer: Maker, examples: Sequence[Example]) -> list[Made]:
    return [row if isinstance(row, BadRowError) else [row] for row in renderer.rows(examples)]


def _pairs(renderer: Renderer, examples: Sequence[Example]) -> list[Made]:
    sides = zip(renderer.rows(examples), renderer.rows([example.refused for example in examples]), strict=True)
    return [_pair(chosen, rejected) for chosen, rejected in sides]


def _pair(chosen: TokenRow | BadRowError, rejected: TokenRow | BadRowError) -> Made:
    for side in (chosen, rejected):
        if isinstance(side, BadRowError):
            return side
    assert isinstance(chosen, TokenRow)
    assert isinstance(rejected, TokenRow)
    if _prompt(chosen) != _prompt(rejected):
        return BadRowError("the tokens of the prompt are not the same before both answers")
    return [Pair(chosen, rejected)]


def _prompt(row: TokenRow) -> list[int]:
    """Return the tokens before the first one that carries loss."""
    first = next((at for at, label in enumerate(row.labels) if label != IGNORED), len(row.labels))
    return row.input_ids[:first]


def _judged(renderer: Renderer, examples: Sequence[Example]) -> list[Made]:
    """A pair is two judgements."""
    made: list[Made] = []
    for example, wanted, pair in zip(examples, renderer.rows(examples), _refused(renderer, examples), strict=True):
        sides = [(wanted, example.label is not False), *([(pair, False)] if pair is not None else [])]
        bad = next((row for row, _ in sides if isinstance(row, BadRowError)), None)
        made.append(bad or [Judged(row, label) for row, label in sides if isinstance(row, TokenRow)])
    return made


def _prompts(renderer: Renderer, examples: Sequence[Example]) -> list[Made]:
    return [_prompt_of(renderer, example) for example in examples]


def _prompt_of(renderer: Renderer, example: Example) -> Made:
    try:
        ids = renderer.prompt(example)
    except BadRowError as error:
        return error
    conversation = json.dumps(example.before_reference) if renderer.has_template else None
    return [Prompt(ids, renderer.tokenizer.decode(ids), conversation, example.reference)]


def _refused(renderer: Renderer, examples: Sequence[Example]) -> list[TokenRow | BadRowError | None]:
    paired = [at for at, example in enumerate(examples) if example.rejected]
    found: list[TokenRow | BadRowError | None] = [None] * len(examples)
    for at, row in zip(paired, renderer.rows([examples[at].refused for at in paired]), strict=True):
        found[at] = row
    return found


@dataclass(frozen=True)
class Shape:
    """A kind of row."""

    make: Callable[[Any, Sequence[Example]], list[Made]]
    """Given what makes token rows: a `Renderer`, or the `Encoder` of that shape."""
    columns: Mapping[str, str]
    """Column to what it holds: `tokens`, one `bool` or `number`, one `text`, which may be missing."""
    formats: tuple[str, ...]
    """The formats of data that it is made of."""
    is_answered: bool = False
    """Whether the model answers itself, so that no token of a row carries loss."""


_TOKENS = {"input_ids": "tokens", "labels": "tokens"}
_SIDES = {f"{side}_{name}": kind for side in ("chosen", "rejected") for name, kind in _TOKENS.items()}
_ANSWERS = (
    "messages", "prompt_completion", "alpaca", "question_answer", "source_target", "tokens_tags", "text_label",
    "mapped",
)  # fmt: skip
_SIDES_OF_TEXT = ("text_label", "prompt_completion", "alpaca", "question_answer", "source_target", "mapped")

SHAPES = {
    "text": Shape(_texts, _TOKENS, (*_ANSWERS, "text")),
    "plain": Shape(_texts, _TOKENS, ("text",)),
    "pairs": Shape(_pairs, _SIDES, ("preference",)),
    "judged": Shape(_judged, {**_TOKENS, "label": "bool"}, ("feedback", "preference")),
    "labelled": Shape(_texts, {"input_ids": "tokens", "labels": "number"}, _SIDES_OF_TEXT),
    "tagged": Shape(_texts, _TOKENS, ("tokens_tags",)),
    "rewritten": Shape(_texts, _TOKENS, _SIDES_OF_TEXT),
    "prompts": Shape(
        _prompts,
        {"prompt": "text", "prompt_ids": "tokens", "conversation": "text", "reference": "text"},
        (*_ANSWERS, "prompt_only"),
        is_answered=True,
    ),
}
"""Kinds of row by name."""


def check_shape(shape: str, overlong: str, loss_on: str) -> None:
    """Raise a UserError where a setting of the data means nothing for rows of this shape."""
    if shape in ("text", "plain"):
        return
    if SHAPES[shape].is_answered:
        if overlong in ("split", "truncate"):
            raise UserError(
                f"data.overlong: {overlong} would make another question of a prompt; drop or error is wanted"
            )
        return
    if overlong == "split":
        raise UserError("data.overlong: split would tear an answer from its prompt; truncate, drop or error are wanted")
    if loss_on == "all" and shape in ("pairs", "judged"):
        raise UserError("data.loss_on: all makes no difference between prompt and answer, which are compared here")

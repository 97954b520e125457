"""From examples to token ids for models that do not write on: the text is labelled, or its words, or rewritten.

They stand where a `Renderer` stands for models that write on, and have what else is read of one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.data.checks import Check
from hf_peft_recipes.data.formats import BadRowError, Example
from hf_peft_recipes.data.rendering import IGNORED, Renderer, TokenRow
from hf_peft_recipes.errors import UserError


@dataclass(frozen=True)
class LabelledRow:
    """Token ids of a text, and the number of its label."""

    input_ids: list[int]
    label: int
    closing: int = 0
    """How many special tokens stand at the end, which stay there when the row is cut."""
    stops = True
    supervised = 1

    @property
    def length(self) -> int:
        """The number of its tokens."""
        return len(self.input_ids)

    def cut(self, limit: int, splits: bool) -> "list[LabelledRow]":
        """Return the first tokens, and the special ones that end a row."""
        return [LabelledRow(_cut(self.input_ids, limit, self.closing), self.label, self.closing)]

    def marked(self) -> list[tuple[int, bool]]:
        """Return every token, and whether it carries loss."""
        return [(token, False) for token in self.input_ids]

    def columns(self) -> dict[str, Any]:
        """Return the row as a table has it."""
        return {"input_ids": self.input_ids, "labels": self.label}


@dataclass(frozen=True)
class TaggedRow(TokenRow):
    """Token ids of a sentence, with the number of a tag, or -100, for each: one a word carries one."""

    closing: int = 0
    """How many special tokens stand at the end, which stay there when the row is cut."""

    def cut(self, limit: int, splits: bool) -> list[TokenRow]:
        """Return the first tokens, and the special ones that end a row."""
        ids, labels = (_cut(whole, limit, self.closing) for whole in (self.input_ids, self.labels))
        return [TaggedRow(ids, labels, closing=self.closing)]


@dataclass(frozen=True)
class RewrittenRow:
    """Token ids of a source, and of what it is to become."""

    input_ids: list[int]
    labels: list[int]
    closing: tuple[int, int] = (0, 0)
    """How many special tokens stand at the end of either."""
    stops: bool = True

    @property
    def length(self) -> int:
        """The number of tokens of the longer side."""
        return max(len(self.input_ids), len(self.labels))

    @property
    def supervised(self) -> int:
        """The number of tokens of the target."""
        return len(self.labels)

    def cut(self, limit: int, splits: bool) -> "list[RewrittenRow]":
        """Return both sides cut, each with the special tokens that end it."""
        sides = zip((self.input_ids, self.labels), self.closing, strict=True)
        source, target = (_cut(side, limit, closing) for side, closing in sides)
        return [RewrittenRow(source, target, self.closing, self.stops)]

    def marked(self) -> list[tuple[int, bool]]:
        """Return every token, and whether it carries loss."""
        return [*((token, False) for token in self.input_ids), *((token, True) for token in self.labels)]

    def columns(self) -> dict[str, Any]:
        """Return the row as a table has it."""
        return {"input_ids": self.input_ids, "labels": self.labels}


class Encoder(ABC):
    """What all of them share: the text of a row is that of its turns, as it is, between the tokenizer's own tokens."""

    has_template = False
    separator = ""
    loss_on = "auto"
    as_served = False
    closes = False

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], labels: Sequence[str] = ()) -> None:
        """Args:
        tokenizer: a fast tokenizer of transformers.
        stop_ids: the ids on which generation stops.
        labels: what is told apart, in the order of the model's logits.
        """
        if not tokenizer.is_fast:
            raise UserError("the tokenizer is a slow one, which does not tell where in a text its tokens stand")
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.labels = tuple(labels)
        self._numbers = {label: number for number, label in enumerate(self.labels)}

    def prompt(self, example: Example) -> list[int]:
        """Return the token ids that the model is given for the example."""
        return self.serve(example.before_reference)

    def serve(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Return the token ids of a text, given as turns."""
        return [*self.tokenizer(_joined(messages)).input_ids]

    @abstractmethod
    def rows(self, examples: Sequence[Example]) -> Sequence[Any]:
        """Return each example as a row, or why it is none; in order."""

    @abstractmethod
    def unlabelled(self, texts: Sequence[str]) -> Sequence[Any]:
        """Return texts as rows of which the labels mean nothing."""

    def checks(self, examples: Sequence[Example]) -> list[Check]:
        """Return what holds of these examples, and what does not."""
        told = f"{len(self.labels)}: {', '.join(self.labels[:12])}{' …' if len(self.labels) > 12 else ''}"
        return [Check("labels", True, told)]

    def _encoded(self, texts: Sequence[str], side: str = "text") -> list[Any]:
        # Of nothing, tokenizers make an error.
        return list(self.tokenizer(**{side: list(texts)}, return_attention_mask=False).encodings) if texts else []


class Labeller(Encoder):
    """Texts of which each has one label."""

    def rows(self, examples: Sequence[Example]) -> list[LabelledRow | BadRowError]:
        """Return each example as token ids and its label's number, or why it is none; in order."""
        encodings = self._encoded([_joined(example.before_reference) for example in examples])
        return [self._row(example, encoding) for example, encoding in zip(examples, encodings, strict=True)]

    def unlabelled(self, texts: Sequence[str]) -> list[LabelledRow]:
        """Return the texts as rows of the first label."""
        return [LabelledRow(list(encoding.ids), 0, _closing(encoding)) for encoding in self._encoded(texts)]

    def _row(self, example: Example, encoding: Any) -> LabelledRow | BadRowError:
        number = self._numbers.get(str(example.reference).strip())
        if number is None:
            return BadRowError(f"{example.reference!r} is no label of the training rows")
        return LabelledRow(list(encoding.ids), number, _closing(encoding))


class Tagger(Encoder):
    """Sentences whose words have a tag each.

    Words are put together with blanks, as a client gives a sentence, and the last token of each carries its tag: the
    first one of a decoder has not seen the others.
    """

    def rows(self, examples: Sequence[Example]) -> list[TaggedRow | BadRowError]:
        """Return each example as token ids and tags, or why it is none; in order."""
        encodings = self._encoded([_joined(example.before_reference) for example in examples])
        return [self._row(example, encoding) for example, encoding in zip(examples, encodings, strict=True)]

    def unlabelled(self, texts: Sequence[str]) -> list[TaggedRow]:
        """Return the texts as rows of which every token has the first tag."""
        encodings = self._encoded(texts)
        return [TaggedRow(list(one.ids), [0] * len(one.ids), closing=_closing(one)) for one in encodings]

    def positions(self, example: Example) -> list[int | None]:
        """Return, for each word, the token that carries its tag; None where the tokenizer drops the word."""
        return _last_tokens(example, self._encoded([_joined(example.before_reference)])[0])

    def _row(self, example: Example, encoding: Any) -> TaggedRow | BadRowError:
        unknown = next((tag for tag in example.tags if tag not in self._numbers), None)
        if unknown is not None:
            return BadRowError(f"{unknown!r} is no tag of the training rows")
        labels = [IGNORED] * len(encoding.ids)
        for position, tag in zip(_last_tokens(example, encoding), example.tags, strict=True):
            if position is not None:
                labels[position] = self._numbers[tag]
        return TaggedRow(list(encoding.ids), labels, closing=_closing(encoding))


class Rewriter(Encoder):
    """Texts that become other texts: translations, summaries, corrections."""

    def rows(self, examples: Sequence[Example]) -> list[RewrittenRow | BadRowError]:
        """Return each example as the token ids of both sides; in order."""
        sources = self._encoded([_joined(example.before_reference) for example in examples])
        targets = self._encoded([str(example.reference) for example in examples], "text_target")
        return [
            RewrittenRow(
                list(source.ids), self._ended(target.ids), (_closing(source), max(1, _closing(target))),
            )
            for source, target in zip(sources, targets, strict=True)
        ]  # fmt: skip

    def unlabelled(self, texts: Sequence[str]) -> list[RewrittenRow]:
        """Return the texts as rows that become themselves."""
        return [RewrittenRow(list(encoding.ids), self._ended(encoding.ids)) for encoding in self._encoded(texts)]

    def checks(self, examples: Sequence[Example]) -> list[Check]:
        """Return whether targets end with a token on which generation stops."""
        ends = {row.labels[-1] for row in self.rows(examples) if isinstance(row, RewrittenRow)}
        stops = ends <= self.stop_ids
        words = ", ".join(str(self.tokenizer.convert_ids_to_tokens(end)) for end in sorted(ends))
        told = words if stops else f"targets end with {words}, on which generation does not stop"
        return [Check("an end token that generation stops on carries loss", stops, told)]

    def _ended(self, ids: Sequence[int]) -> list[int]:
        """Return the ids with the end token behind them, where the tokenizer puts none."""
        end = self.tokenizer.eos_token_id
        return list(ids) if end is None or (ids and ids[-1] in self.stop_ids | {end}) else [*ids, end]


ENCODERS: dict[str, type[Encoder]] = {"labelled": Labeller, "tagged": Tagger, "rewritten": Rewriter}
"""Shape of rows to what makes them; all others are a `Renderer`'s."""

Maker = Renderer | Encoder
"""What makes token rows of examples."""


def _joined(turns: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(str(turn["content"]) for turn in turns)


def _closing(encoding: Any) -> int:
    """Return how many special tokens stand at the end."""
    mask = list(encoding.special_tokens_mask)
    return next((at for at, special in enumerate(reversed(mask)) if not special), len(mask))


def _cut(ids: list[int], limit: int, closing: int) -> list[int]:
    if len(ids) <= limit:
        return ids
    closing = min(closing, limit)
    return ids[: limit - closing] + ids[len(ids) - closing :]


def _last_tokens(example: Example, encoding: Any) -> list[int | None]:
    """Return the last token of each of the example's words, of the sentence that the words make with blanks."""
    text = _joined(example.before_reference)
    # The words are the sentence's end; a system turn may stand before them.
    at, found = len(text) - len(" ".join(example.tokens)), list[int | None]()
    for word in example.tokens:
        inside = (_last_token(encoding, place) for place in reversed(range(at, at + len(word))))
        found.append(next((token for token in inside if token is not None), None))
        at += len(word) + 1
    return found


def _last_token(encoding: Any, place: int) -> int | None:
    """Return the last token of a character; of one whose bytes are tokens by themselves there are several."""
    token: int | None = encoding.char_to_token(place)
    while token is not None and token + 1 < len(encoding.ids):
        span = encoding.token_to_chars(token + 1)
        if span is None or not span[0] <= place < span[1]:
            break
        token += 1
    return token

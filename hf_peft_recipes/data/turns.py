"""Where in a rendered conversation each assistant turn stands, for any chat template, with or without its help.

Templates differ in one thing that matters here: whether a turn looks the same once others follow it. Where it does,
rendering the conversation up to a turn gives that turn's place. Where it does not (stock Qwen3 drops the thoughts of
earlier turns), the whole conversation is rendered again with the turn's content replaced: what changes is the turn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.data.formats import BadRowError

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], bool], str]
"""Messages, and whether to open the next assistant turn -> the text that the chat template makes of them."""

MARKS = ("\ue000mark\ue001", "\uf8f0other\uf8f1")
"""From the private use areas, which no real text holds; two, lest a content end as a mark does."""

_LAST_WORDS = 64
"""Characters of a content by which its end is found."""


@dataclass(frozen=True)
class Turn:
    """The place of one assistant turn in the rendered text, in characters."""

    start: int
    """Where the model begins to write: what it is served ends here."""
    closes_after: int
    """What ends the turn stands here or later."""
    limit: int
    """And before this."""
    served: str | None = None
    """What the template serves before the answer, where that is not what stands before it in the conversation."""


def find_turns(messages: Sequence[Message], wanted: Sequence[int], render: Render) -> tuple[str, list[Turn]]:
    """Return the conversation's text, as the template renders it whole, and the places of the wanted turns in it.

    Args:
        messages: the conversation.
        wanted: indices of assistant turns, ascending.
        render: the chat template.

    Raises:
        BadRowError: a turn that cannot be located; it is never guessed.
    """
    text = render(messages, False)
    turns = []
    for index in wanted:
        turn = _by_prefix(text, messages, index, render) or _by_change(text, messages, index, render)
        if turn is None:
            raise BadRowError(f"turn {index + 1} cannot be located in what the chat template makes of the conversation")
        turns.append(turn)
    return text, turns


def _by_prefix(text: str, messages: Sequence[Message], index: int, render: Render) -> Turn | None:
    """Return the turn's place where the template renders the same whatever follows, else None."""
    served = render(messages[:index], True)
    through = text if index == len(messages) - 1 else render(messages[: index + 1], False)
    if not text.startswith(served) or not text.startswith(through) or len(through) <= len(served):
        return None
    # The content may hold what looks like the end of a turn; the real one follows its last words.
    last_words = str(messages[index].get("content") or "").strip()[-_LAST_WORDS:]
    at = text.rfind(last_words, len(served), len(through))
    return Turn(len(served), at + len(last_words), len(through)) if at >= 0 else None


def _by_change(text: str, messages: Sequence[Message], index: int, render: Render) -> Turn | None:
    """Return the turn's place by what changes in the text when its content does, else None."""
    changed = _changed_span(text, messages, index, render)
    if changed is None:
        return None
    earlier = _changed_span(text, messages, index - 1, render) if index else None
    following = _changed_span(text, messages, index + 1, render) if index + 1 < len(messages) else None
    # What the template puts before an answer, and nowhere else, tells where the model takes over.
    history, served = render(messages[:index], False), render(messages[:index], True)
    opening = served[_same(history, served) :]
    start = _end_of(opening, text, earlier[1] if earlier else 0, changed[0])
    if start is None:
        return None
    last = index == len(messages) - 1
    return Turn(
        start, changed[1], following[0] if following else len(text), served if last and text[:start] != served else None
    )


def _end_of(opening: str, text: str, earliest: int, latest: int) -> int | None:
    """Return where the opening of an answer ends in the text: the whole of it, or what an earlier turn keeps of it."""
    # Templates that open an answer with a thought take the thought away from answers that were given.
    for length in range(len(opening), 0, -1):
        at = text.rfind(opening[:length], earliest, latest)
        if at >= 0 and any(map(str.isalnum, opening[:length])):
            return at + length
    return None


def _changed_span(text: str, messages: Sequence[Message], index: int, render: Render) -> tuple[int, int] | None:
    """Return the characters of `text` that come from the content of one message; None where it leaves no trace."""
    starts, ends = [], []
    for mark in MARKS:
        marked = [{**message, "content": mark} if at == index else message for at, message in enumerate(messages)]
        other = render(marked, False)
        if mark not in other:
            return None
        start = _same(text, other)
        starts.append(start)
        ends.append(len(text) - _same(text[start:][::-1], other[start:][::-1]))
    # A content that begins or ends as a mark does narrows one span, not the other.
    return min(starts), max(ends)


def _same(one: str, other: str) -> int:
    """Return how many characters two texts have in common from their start on."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

"""How a chat template writes plain conversations, learned once: then one rendering a row tells where its turns stand.

Most templates put the same words before and behind every turn. Whether they do so with a conversation at hand is seen
at once: its rendering is then just what was expected. Where it is not, `turns` looks closer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.data.formats import BadRowError
from hf_peft_recipes.data.turns import Render, Turn

_PLAIN = {"role", "content"}


@dataclass(frozen=True)
class Layout:
    """What a template writes around the contents of a conversation of users and assistants."""

    head: str
    """Before the first user's content."""
    answer: str
    """Between a user's content and the assistant's: what is served before an answer ends with it."""
    closing: str
    """Behind an assistant's content, before the next turn begins."""
    back: str
    """Between an assistant's content and the next user's."""
    tail: str
    """Behind the last assistant's content."""
    system: tuple[str, str] | None
    """Before a system's content, and between it and the first user's; None where the template takes no system turn."""

    def find(self, messages: Sequence[Mapping[str, Any]], wanted: Sequence[int], render: Render) -> Any:
        """Return the text and the wanted turns, as `find_turns` does; None where the conversation is not so written.

        Args:
            messages: the conversation.
            wanted: indices of assistant turns, ascending.
            render: the chat template.
        """
        if not self._fits(messages):
            return None
        text = render(messages, False)
        for strips in (False, True):
            contents = [message["content"].strip() if strips else message["content"] for message in messages]
            expected, starts = self._written(messages, contents)
            if text == expected:
                return text, [self._turn(text, starts[at], contents[at], at == len(messages) - 1) for at in wanted]
        return None

    def _fits(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        if not all(message.keys() <= _PLAIN and isinstance(message["content"], str) for message in messages):
            return False
        roles = [message["role"] for message in messages]
        if roles and roles[0] == "system" and self.system is not None:
            roles = roles[1:]
        return bool(roles) and len(roles) % 2 == 0 and roles == ["user", "assistant"] * (len(roles) // 2)

    def _written(self, messages: Sequence[Mapping[str, Any]], contents: Sequence[str]) -> tuple[str, list[int]]:
        """Return the text that is expected, and where each content begins in it."""
        starts_with_system = messages[0]["role"] == "system" and self.system is not None
        before = list(self.system) if starts_with_system and self.system else [self.head]
        while len(before) < len(messages):
            before.append(self.answer if messages[len(before)]["role"] == "assistant" else self.back)
        pieces, starts, length = list[str](), list[int](), 0
        for words, content in zip(before, contents, strict=True):
            starts.append(length + len(words))
            length = starts[-1] + len(content)
            pieces += [words, content]
        return "".join([*pieces, self.tail]), starts

    def _turn(self, text: str, start: int, content: str, is_last: bool) -> Turn:
        end = start + len(content)
        return Turn(start, end, len(text) if is_last else end + len(self.closing))


def learn_layout(render: Render) -> Layout | None:
    """Return how the template writes conversations, None where it writes their turns in more than one way."""
    marks = [f"\ue000{number}\ue001" for number in range(5)]
    turns = [{"role": ("user", "assistant")[at % 2], "content": mark} for at, mark in enumerate(marks[:4])]
    try:
        whole = _between(render(turns, False), marks[:4])
        served, through = render(turns[:1], True), render(turns[:2], False)
    except BadRowError:
        return None
    if whole is None or whole[1] != whole[3]:
        return None
    head, answer, back, _, tail = whole
    written = f"{head}{marks[0]}{answer}"
    closing = through.removeprefix(f"{written}{marks[1]}")
    if served != written or closing == through or not back.startswith(closing):
        return None
    return Layout(head, answer, closing, back, tail, _system(render, turns, marks, whole))


def _system(render: Render, turns: list[dict[str, str]], marks: list[str], whole: list[str]) -> tuple[str, str] | None:
    """Return what stands around a system's content, None where the template takes none or changes the rest for it."""
    try:
        pieces = _between(render([{"role": "system", "content": marks[4]}, *turns], False), [marks[4], *marks[:4]])
    except BadRowError:
        return None
    return (pieces[0], pieces[1]) if pieces is not None and pieces[2:] == whole[1:] else None


def _between(text: str, marks: Sequence[str]) -> list[str] | None:
    """Return what stands before, between and behind the marks; None unless each stands there once, in order."""
    pieces = list[str]()
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found or mark in text:
            return None
        pieces.append(piece)
    return [*pieces, text]

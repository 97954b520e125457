"""The tokens of one row as stretches with and without loss, in characters that can be seen: what both views share."""

import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONG_ROW_TOKENS = 800
"""Rows that are longer are elided."""
KEPT_TOKENS = 60
"""What stays at either end of an elided stretch."""
LEAST_ELIDED_TOKENS = 20
"""Hiding fewer saves no room."""

_SIGNS = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
# They join their neighbours (families of emoji, Persian); without neighbours nobody would see them.
_JOINERS = frozenset("\u200c\u200d")
_SEEN_FORMAT = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u08e2")
"""Signs of Arabic and Syriac that only Unicode's tables call invisible."""
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@dataclass(frozen=True)
class Part:
    """Characters of a token: its own, or (`is_sign`) signs that stand for what cannot be seen."""

    text: str
    is_sign: bool


@dataclass(frozen=True)
class Token:
    """One token in characters that can be seen."""

    id: int | None
    parts: tuple[Part, ...]
    special: bool

    @property
    def text(self) -> str:
        """Return what is shown of the token."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens that all carry loss, or all carry none."""

    supervised: bool
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Elision:
    """The middle of a stretch without loss, too long to be shown."""

    stretch: Stretch


@dataclass(frozen=True)
class Cut:
    """A place where `max_length` cuts the row."""

    position: int
    """Of the first token behind the cut, counted from 0."""


def stretches(row: Mapping[str, Any]) -> Iterator[Stretch | Elision | Cut]:
    """Yield the row in its order; cuts, and every token with loss, are never elided.

    Args:
        row: as it stands under `rows` of an inspection: `tokens`, and `cuts` as token positions.
    """
    tokens: Sequence[Mapping[str, Any]] = row.get("tokens") or ()
    cuts = sorted({cut for cut in row.get("cuts") or () if 0 < cut <= len(tokens)})
    is_long = len(tokens) > LONG_ROW_TOKENS
    for start, end in itertools.pairwise([0, *cuts, len(tokens)]):
        if start in cuts:
            yield Cut(start)
        for supervised, group in itertools.groupby(tokens[start:end], lambda token: bool(token.get("supervised"))):
            members = list(group)
            hidden = len(members) - 2 * KEPT_TOKENS
            if supervised or not is_long or hidden < LEAST_ELIDED_TOKENS:
                yield _stretch(supervised, members)
                continue
            yield _stretch(False, members[:KEPT_TOKENS])
            yield Elision(_stretch(False, members[KEPT_TOKENS:-KEPT_TOKENS]))
            yield _stretch(False, members[-KEPT_TOKENS:])


def visible(text: str) -> tuple[Part, ...]:
    """Return the text in characters that can be seen and that do nothing to the screen.

    A line end becomes ↵ and a line end, a tab ⇥ and a tab, a carriage return ␍. Other control characters, marks that
    turn the writing direction, invisible characters and lone surrogates become `<U+202E>`.
    """
    return _joined(_characters(text))


def one_line(value: Any) -> str:
    """Return the value's text for a label or a table's cell: as `visible`, without line ends."""
    return "".join(part.text for part in visible(str(value))).replace("\n", "").replace("\t", "")


def _stretch(supervised: bool, tokens: Sequence[Mapping[str, Any]]) -> Stretch:
    whole = "".join(token.get("text") or "" for token in tokens)
    characters = _characters(whole)
    end = 0
    # Blanks at an edge, or beside a special token, are what people get wrong in templates, and what a terminal hides.
    for _, group in itertools.groupby(tokens, lambda token: bool(token.get("special"))):
        start, end = end, end + sum(len(token.get("text") or "") for token in group)
        for order in (range(start, end), range(end - 1, start - 1, -1)):
            for place in itertools.takewhile(lambda place: unicodedata.category(whole[place]) == "Zs", order):
                characters[place] = Part("␣" if whole[place] == " " else _escaped(whole[place]), True)
    shown, place = list[Token](), 0
    for token in tokens:
        identity, text = token.get("id"), token.get("text")
        end = place + len(text or "")
        parts = _joined(characters[place:end]) if text else _textless(text, identity, end < len(whole))
        # A mark without its letter would sit on whatever the view puts before it.
        if text and place == 0 and unicodedata.category(text[0]).startswith("M"):
            parts = (Part("◌", True), *parts)
        place = end
        shown.append(Token(identity, parts, bool(token.get("special"))))
    return Stretch(supervised, tuple(shown))


def _textless(text: str | None, identity: Any, goes_on: bool) -> tuple[Part, ...]:
    if text is None:
        return (Part("<no text>" if identity is None else f"<id {one_line(identity)}>", True),)
    # A part of a character that a later token completes and shows.
    return () if goes_on else (Part("∅", True),)


def _characters(text: str) -> list[Part]:
    return [_character(char, 0 < place < len(text) - 1) for place, char in enumerate(text)]


def _character(char: str, has_neighbours: bool) -> Part:
    if char in _SIGNS:
        return Part(_SIGNS[char], True)
    if char in _SEEN_FORMAT or (char in _JOINERS and has_neighbours) or unicodedata.category(char) not in _UNSEEN:
        return Part(char, False)
    return Part(_escaped(char), True)


def _escaped(char: str) -> str:
    return f"<U+{ord(char):04X}>"


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    groups = itertools.groupby(parts, lambda part: part.is_sign)
    return tuple(Part("".join(part.text for part in group), is_sign) for is_sign, group in groups)

"""The space of a sweep: which fields of a recipe are searched, and where. Imports nothing heavy.

A space is written `learning_rate=loguniform(1e-5,1e-3),r=8|16|64`.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.spec import strict_yaml

CHOICE = "choice"
_RANGES = {"uniform": float, "loguniform": float, "int": int}
"""Ranges by name, and the type of their bounds, which both belong to the range."""
_RANGE = re.compile(r"(\w+)\((.*)\)")


@dataclass(frozen=True)
class Dimension:
    """Where one field is searched."""

    key: str
    """Of the recipe, as a flag has it."""
    kind: str
    """`uniform`, `loguniform`, `int` or `choice`."""
    low: float | int = 0
    high: float | int = 0
    choices: tuple[str, ...] = ()
    """As words of the command line."""

    @property
    def is_log(self) -> bool:
        """Whether it is searched evenly in the logarithm."""
        return self.kind == "loguniform"

    @property
    def ends(self) -> list[Any]:
        """The outermost values of a range, or all choices, as `ask` may give them."""
        return list(self.choices) if self.kind == CHOICE else [self.low, self.high]

    def value(self, asked: Any) -> Any:
        """Return what the field is set to for a value that was asked for: a choice is read as a flag's word is."""
        return strict_yaml.load_scalar(asked) if self.kind == CHOICE else asked

    def __str__(self) -> str:
        where = "|".join(self.choices) if self.kind == CHOICE else f"{self.kind}({self.low:g},{self.high:g})"
        return f"{self.key}={where}"


def parse_space(text: str | Sequence[str] | Mapping[str, Any]) -> tuple[Dimension, ...]:
    """Return the dimensions of a space.

    Args:
        text: `key=loguniform(a,b)`, `key=uniform(a,b)`, `key=int(a,b)` or `key=a|b|c`, with commas between; several of
            such texts; or a mapping of keys to what stands behind the equals sign, where choices may be a list.

    Raises:
        UserError: a space that cannot be read, or searched.
    """
    dimensions: dict[str, Dimension] = {}
    for key, where in _pairs(text):
        if key in dimensions:
            raise UserError(f"--space: {key} stands twice")
        dimensions[key] = _dimension(key, where)
    if not dimensions:
        raise UserError("--space: nothing to search; write key=loguniform(a,b), uniform(a,b), int(a,b) or a|b|c")
    return tuple(dimensions.values())


def _pairs(text: str | Sequence[str] | Mapping[str, Any]) -> Iterator[tuple[str, str | list[str]]]:
    if isinstance(text, Mapping):
        for key, where in text.items():
            yield _key(key), where if isinstance(where, str) else [_word(key, value) for value in where]
        return
    for part in [text] if isinstance(text, str) else text:
        for word in _apart(part):
            key, equals, where = word.partition("=")
            if not equals or not key.strip() or not where.strip():
                raise UserError(f"--space {word!r}: key=loguniform(a,b), uniform(a,b), int(a,b) or a|b|c is wanted")
            yield _key(key), where.strip()


def _key(text: str) -> str:
    return text.strip().removeprefix("--").replace("-", "_")


def _word(key: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if not isinstance(value, (str, int, float)):
        raise UserError(f"--space {key}: {value!r} is no single value")
    return str(value)


def _apart(text: str) -> Iterator[str]:
    """Yield what stands between those commas that are in no brackets."""
    depth, begun = 0, 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            yield text[begun:at].strip()
            begun = at + 1
    if text[begun:].strip():
        yield text[begun:].strip()


def _dimension(key: str, where: str | list[str]) -> Dimension:
    match = _RANGE.fullmatch(where) if isinstance(where, str) else None
    if match:
        return _range(key, match[1], match[2])
    choices = [word.strip() for word in where.split("|")] if isinstance(where, str) else where
    if not all(choices):
        raise UserError(f"--space {key}={where}: a choice is missing beside '|'")
    if len(choices) < 2:
        raise UserError(f"--space {key}={choices[0] if choices else ''}: one value is no choice; use --{key} for it")
    if twice := [word for at, word in enumerate(choices) if word in choices[:at]]:
        raise UserError(f"--space {key}: {twice[0]} stands twice")
    return Dimension(key, CHOICE, choices=tuple(choices))


def _range(key: str, kind: str, bounds: str) -> Dimension:
    told = f"--space {key}={kind}({bounds})"
    if kind not in _RANGES:
        raise UserError(f"{told}: unknown range {kind!r}{did_you_mean(kind, _RANGES)} (known: {', '.join(_RANGES)})")
    try:
        low, high = (_RANGES[kind](float(word)) if _is_whole(kind, word) else math.nan for word in bounds.split(","))
    except ValueError:
        raise UserError(f"{told}: two numbers are wanted") from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{told}: two {'whole' if kind == 'int' else 'finite'} numbers are wanted")
    if low >= high:
        raise UserError(f"{told}: the first bound is to be below the second one")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{told}: a logarithm needs bounds above 0")
    return Dimension(key, kind, low, high)


def _is_whole(kind: str, word: str) -> bool:
    return kind != "int" or float(word).is_integer()

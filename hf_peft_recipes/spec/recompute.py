"""The value of `recompute`: how many of a model's layers are computed a second time, so that less of them is kept."""

import re
from dataclasses import dataclass

from hf_peft_recipes.errors import UserError

AUTO, OFF, OFFLOADING = "auto", "off", "offloading"
_AMOUNT = re.compile(r"(\d+) (block|feed-forward)s?")


@dataclass(frozen=True)
class Recompute:
    """Numbers of layers, counted from the model's input: first whole blocks, then those of which it is a part."""

    blocks: int = 0
    """Of these only the input is kept for the way back."""
    feed_forwards: int = 0
    """Of these all but what the feed-forward part makes inside of it."""
    offloads: bool = False
    """Whether the blocks' inputs wait in the host's memory."""

    def __bool__(self) -> bool:
        """Return whether anything is computed twice."""
        return bool(self.blocks or self.feed_forwards)

    def __str__(self) -> str:
        """Return it as a recipe has it: `4 blocks + 12 feed-forwards`."""
        named = (("block", self.blocks), ("feed-forward", self.feed_forwards))
        parts = [f"{number} {name}{'s' * (number != 1)}" for name, number in named if number]
        return " + ".join([*parts, *([OFFLOADING] if self.offloads else [])]) or OFF

    def of(self, layers: int) -> str:
        """Return it for people: `4 of 30 blocks + 12 feed-forwards`.

        Args:
            layers: that the model has.
        """
        number, _, rest = str(self).partition(" ")
        return f"{number} of {layers} {rest}" if self else OFF


NOTHING = Recompute()


def read_recompute(value: object) -> Recompute | None:
    """Return what a recipe's `recompute` asks for; None where the plan decides.

    Args:
        value: `auto`, `off`, or numbers of layers such as `12 feed-forwards`, `4 blocks`, or both with a `+` between;
            `4 blocks + offloading` lets the inputs of these wait in the host's memory.

    Raises:
        UserError: none of these.
    """
    if value == AUTO:
        return None
    if value in (OFF, None):
        return NOTHING
    parts = [part.strip() for part in str(value).split("+")]
    offloads = OFFLOADING in parts
    if offloads:
        parts.remove(OFFLOADING)
    found = [_AMOUNT.fullmatch(part) for part in parts]
    amounts = {match[2]: int(match[1]) for match in found if match}
    if len(amounts) != len(found):
        raise UserError(f"recompute = {value!r}: auto, off, or '4 blocks + 12 feed-forwards' is wanted")
    if offloads and not amounts.get("block"):
        raise UserError(f"recompute = {value!r}: what is offloaded are inputs of blocks, as in '4 blocks + offloading'")
    return Recompute(amounts.get("block", 0), amounts.get("feed-forward", 0), offloads)

"""The values of a recipe, flat: one entry a leaf, each with its origin and reason. Merging is then setting."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str, ...]

SECTIONS = ("model", "quantization", "adapter", "training", "data", "evaluation", "rewards", "feedback")
"""The mappings of a recipe."""

SCALARS = ("objective", "speed", "recompute", "certify", "allow_code_execution")
"""The keys of a recipe that are no section."""

USERS_DECISIONS: tuple[Path, ...] = (
    ("model", "trust_remote_code"),
    ("model", "use_kernels"),
    ("model", "allow_all_kernels"),
    ("model", "kernel_config"),
    ("allow_code_execution",),
)
"""What lets code run that is not ours: flags only, which no recipe may set, nor the recipe of a run keep. Kernels are
native code that transformers takes from the Hub."""

HUB_ORIGIN = "hub:"
"""How the origin of a recipe begins that the Hub holds."""
_OF_RULE = "rule of "

GIVEN = 1_000_000
"""The layer of what the user gave, above every file."""


@dataclass(frozen=True)
class Entry:
    """One value of a recipe."""

    value: Any
    origin: str
    """`recipes/methods/lora.yaml`, `--learning_rate`, `rule of sft (device.bf16: false)` …"""
    reason: str = ""
    scalable: bool = False
    """Whether the value was stated for full fine-tuning by an objective, so that a method's `scale` applies to it."""
    layer: int = 0
    """The position of the file among those that were merged; a rule yields to the files that come after its own."""


def rule_origin(origin: str, conditions: str) -> str:
    """Return the origin of a value that a rule has set.

    Args:
        origin: of the file with the rule.
        conditions: on which it was set.
    """
    return f"{_OF_RULE}{origin} ({conditions})"


def is_of_hub(origin: str) -> bool:
    """Return whether a value comes from a recipe of the Hub, whether it stands there or a rule there sets it."""
    return origin.removeprefix(_OF_RULE).startswith(HUB_ORIGIN)


def users_decision(path: Path) -> Path | None:
    """Return the decision of who runs a recipe that a value is, or is a part of; None where it is none."""
    return next((decision for decision in USERS_DECISIONS if path[: len(decision)] == decision), None)


class Entries(dict[Path, Entry]):
    """Leaf path to entry. A leaf replaces what lies below it, and what lies above it if that is no mapping."""

    def put(self, path: Path, entry: Entry) -> None:
        """Set one leaf, dropping every entry that it contradicts."""
        self.drop(path)
        for length in range(1, len(path)):
            self.pop(path[:length], None)
        self[path] = entry

    def drop(self, path: Path) -> list[Path]:
        """Remove the leaf at `path` and all below it; return the paths that were removed."""
        gone = [key for key in self if key[: len(path)] == path]
        for key in gone:
            del self[key]
        return gone

    def value(self, *path: str) -> Any:
        """Return the leaf at `path`, or the nested mapping of what lies below it; None when there is nothing."""
        if path in self:
            return self[path].value
        below: dict[str, Any] = {}
        for key, entry in self.items():
            if key[: len(path)] == path:
                target = below
                for part in key[len(path) : -1]:
                    target = target.setdefault(part, {})
                target[key[-1]] = entry.value
        return below or None

    def section(self, name: str) -> dict[str, Any] | None:
        """Return the mapping of one section, None when the recipe has none or sets it to null."""
        return self.value(name)

    def has_section(self, name: str) -> bool:
        """Return whether the recipe speaks of the section at all, be it to say null."""
        return any(key[0] == name for key in self)


def leaves(mapping: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield `(path, value)` for every leaf of a nested mapping; an empty mapping is a leaf."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value

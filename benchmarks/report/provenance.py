"""What a figure was measured on, with, at and when: without it there is no figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from hf_peft_recipes.errors import UserError

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
"""Whose versions decide what is measured."""
OPTIONAL = ("torchao",)
"""Whose do too, where they are installed: PEFT imports it beside every adapter."""
GIB = 2**30
HALVES = ", products in bfloat16"
"""Behind a processor that has them: they decide what a recipe trains in. Of GPUs it goes without saying."""
_COMMIT_LETTERS = 12


@dataclass(frozen=True)
class Provenance:
    """Where figures come from; one without all of it cannot be made."""

    where: str
    """The file, and the line or cell; for messages."""
    hardware: tuple[str, ...]
    """The machines, each once."""
    versions: tuple[str, ...]
    commit: tuple[str, ...]
    """`-dirty` behind one whose files had been changed."""
    date: tuple[str, ...]
    """Days, the first one first."""

    def __post_init__(self) -> None:
        """Refuse what is missing.

        Raises:
            UserError: a piece is not there.
        """
        for piece in (field.name for field in fields(self)):
            values = getattr(self, piece)
            if not values or not all(values):
                raise UserError(f"{self.where}: no {piece} beside its figures; measure it again with what records it")

    @property
    def halves(self) -> str:
        """What stands behind a heading where a processor with products in bfloat16 was measured."""
        return HALVES if any(HALVES in name for name in self.hardware) else ""

    def phrase(self) -> str:
        """Return it as the end of a paragraph: machine; versions; commit; date."""
        days = self.date if self.date[0] == self.date[-1] else (self.date[0], self.date[-1])
        commits = ("commit " if len(self.commit) == 1 else "commits ") + ", ".join(self.commit)
        return "; ".join([" and ".join(self.hardware), " and ".join(self.versions), commits, " to ".join(days)])


def read_provenance(result: Mapping[str, Any], where: str) -> Provenance:
    """Return the provenance that a result carries.

    Args:
        result: a line of a benchmark, the whole of a comparison, or a receipt.
        where: its file, and its line or cell.

    Raises:
        UserError: a piece is missing.
    """
    commit, date = _commit(result.get("commit")), str(result.get("date") or "")[:10]
    return Provenance(where, (_hardware(result),), (_versions(result, where),), (commit,), (date,))


def join(where: str, parts: Iterable[Provenance]) -> Provenance:
    """Return the provenance of several results together: every machine, set of versions and commit, and the days.

    Args:
        where: the file that holds them.
        parts: of each.

    Raises:
        UserError: there are none.
    """
    found = list(parts)

    def each(piece: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value for part in found for value in getattr(part, piece)))

    return Provenance(where, each("hardware"), each("versions"), each("commit"), tuple(sorted(each("date"))))


def _hardware(result: Mapping[str, Any]) -> str:
    hardware = result.get("hardware") or {}
    device, threads = hardware.get("device"), hardware.get("threads")
    if isinstance(device, Mapping):
        device = _device(device)
    told = f", {threads} thread{'' if str(threads) == '1' else 's'}" if threads else ""
    return f"{device}{told}" if device else ""


def _device(device: Mapping[str, Any]) -> str:
    if not device.get("name") or not device.get("memory_bytes"):
        return ""
    number = f"{device['count']} × " if device.get("count", 1) > 1 else ""
    halves = HALVES if device.get("kind") == "cpu" and device.get("bf16") else ""
    return f"{number}{device['name']}, {device['memory_bytes'] / GIB:.0f} GiB{halves}"


def _versions(result: Mapping[str, Any], where: str) -> str:
    versions = result.get("versions") or {}
    missing = [package for package in PACKAGES if not versions.get(package)]
    if versions and missing:
        raise UserError(f"{where}: no version of {missing[0]} beside its figures")
    named = [*PACKAGES, *(package for package in OPTIONAL if package in versions)]
    return ", ".join(f"{package} {versions[package]}" for package in named) if versions else ""


def _commit(commit: Any) -> str:
    """Return a commit short, however its file tells that there were changes."""
    found = re.fullmatch(r"([0-9a-f]{7,40})(-dirty| and changes)?", str(commit or ""))
    if found is None:
        return str(commit or "")
    return found[1][:_COMMIT_LETTERS] + ("-dirty" if found[2] else "")

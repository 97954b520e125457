"""Many cells, one after the other, into one file: what is there is not measured again, and nothing that was is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_peft_recipes.bench.cell import SCHEMA_VERSION, Cell, run_cell
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.measure.facts import commit_of
from hf_peft_recipes.measure.nvml import used_bytes
from hf_peft_recipes.results import write_text

QUIET_BYTES = 2**30
"""What a GPU without work holds at most: a display, a driver's own."""

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a result file, none where there is no file.

    Raises:
        UserError: a line that is no result, or one of another schema.
    """
    if not path.is_file():
        return []
    lines: list[Line] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            version = line["schema_version"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number}: no result of a benchmark") from None
        if version != SCHEMA_VERSION:
            raise UserError(f"{path}, line {number}: schema version {version!r}; this software reads {SCHEMA_VERSION}")
        lines.append(line)
    return lines


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a result file, a JSON line a cell, so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def run_cells(
    cells: Iterable[Cell],
    path: Path,
    scratch: Path,
    keep: bool = False,
    busy: bool = False,
    told: Callable[[Line, bool], None] = lambda line, fresh: None,
) -> list[Line]:
    """Run what the file has no result of, and return the lines of all the cells.

    A result counts where the cell is the same to the last option and the code is (its commit, as far as there is one;
    changes that are not committed make every result old). A cell that ran out of memory has a result, one that failed
    otherwise has not.

    Args:
        cells: to run, in this order.
        path: of the result file.
        scratch: where models and rows are made.
        keep: take results of other code too.
        busy: measure though other processes use the GPU.
        told: is called with each line, and whether it was measured now.

    Raises:
        UserError: a file that is none of ours, an unknown recipe or shape, a busy GPU.
    """
    lines, commit = read_lines(path), commit_of(Path(__file__).parent)
    if not busy:
        require_quiet()
    found = []
    for cell in cells:
        line = next((line for line in lines if _same(line, cell) and (keep or _fresh(line, commit))), None)
        fresh = line is None
        if line is None:
            line = run_cell(cell, scratch) | {"commit": commit}
            lines = [*(other for other in lines if other["name"] != line["name"]), line]
            write_lines(path, lines)
        told(line, fresh)
        found.append(line)
    return found


def require_quiet() -> None:
    """Raise a UserError where somebody else uses the GPU: no figure that is taken beside them means anything."""
    used = used_bytes() or 0
    if used > QUIET_BYTES:
        raise UserError(
            f"{detect_device().name} is busy: {used / 2**30:.1f} GiB of it are in use already; "
            "wait until it is free, or measure all the same with --busy"
        )


def _same(line: Line, cell: Cell) -> bool:
    asked = {**vars(cell), "overrides": dict(cell.overrides)}
    return bool(line["cell"] == json.loads(json.dumps(asked)))


def _fresh(line: Line, commit: str | None) -> bool:
    dirty = commit is not None and commit.endswith("-dirty")
    return line["commit"] == commit and not dirty and line["status"] != "failed"

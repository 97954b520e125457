"""Many cells, one after the other, into one file: what is there is not measured again, and nothing that was is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_peft_recipes.bench.cell import SCHEMA_VERSION, Cell, check_cell, run_cell
from hf_peft_recipes.bench.shapes import make_model
from hf_peft_recipes.device import detect_device
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.measure.facts import code_digest, commit_of
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
    together: int = 1,
    told: Callable[[Line, bool], None] = lambda line, fresh: None,
) -> list[Line]:
    """Run what the file has no result of, and return the lines of all the cells.

    A result counts where the cell is the same to the last option and the code to the last byte. A cell that ran out of
    memory has a result, one that failed otherwise has not.

    Args:
        cells: to run, in this order.
        path: of the result file.
        scratch: where models and rows are made.
        keep: take results of other code too.
        busy: measure though other processes use the GPU.
        together: cells that run at the same time, for memory alone: their lines say so, and have no figures of speed.
        told: is called with each line, and whether it was measured now.

    Raises:
        UserError: a file that is none of ours, an unknown recipe or shape, a busy GPU.
    """
    cells = list(cells)
    for cell in cells:
        check_cell(cell)
    lines, commit = read_lines(path), commit_of(Path(__file__).parent)
    if not busy:
        require_quiet("; wait until it is free, or measure all the same with --busy")
    found: list[Line | None] = []
    missing: list[tuple[int, Cell]] = []
    for number, cell in enumerate(cells):
        line = find_line(lines, cell)
        line = line if line is not None and is_result(line, keep) else None
        found.append(line)
        if line is None:
            missing.append((number, cell))
            # Before several need it at the same time.
            make_model(scratch / "models", cell.shape, cell.quantized_files)
        else:
            told(line, False)

    def measure(cell: Cell) -> Line:
        line = run_cell(cell, scratch) | {"commit": commit, "code": code_digest(), "together": together}
        return line if together == 1 else {**line, "figures": None}

    with ThreadPoolExecutor(together) as pool:
        for (number, _), line in zip(missing, pool.map(measure, [cell for _, cell in missing]), strict=True):
            lines = with_line(lines, line)
            write_lines(path, lines)
            told(line, True)
            found[number] = line
    return [line for line in found if line is not None]


def find_line(lines: Iterable[Line], cell: Any) -> Line | None:
    """Return the line of this very cell, the same to the last option; None where there is none.

    Args:
        lines: of a result file.
        cell: a dataclass.
    """
    asked = json.loads(json.dumps(asdict(cell)))
    return next((line for line in lines if line["cell"] == asked), None)


def is_result(line: Line, keep: bool = False) -> bool:
    """Return whether a line spares a measurement: it ended as it would again, with the code that is here.

    Args:
        line: of a result file.
        keep: take the results of other code too.
    """
    return line["status"] in ("done", "oom") and (keep or line.get("code") == code_digest())


def with_line(lines: Iterable[Line], line: Line) -> list[Line]:
    """Return the lines with this one at the end, in place of an earlier one of its name."""
    return [*(other for other in lines if other["name"] != line["name"]), line]


def require_quiet(otherwise: str = "") -> None:
    """Raise a UserError where somebody else uses the GPU: no figure that is taken beside them means anything.

    Args:
        otherwise: what the user can do, at the end of the message.
    """
    used = used_bytes() or 0
    if used > QUIET_BYTES:
        raise UserError(f"{detect_device().name} is busy: {used / 2**30:.1f} GiB of it are in use already{otherwise}")

"""One part of the suite: its cells one after the other, as long as there is time, into one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.place import Model, Place
from hf_peft_recipes.bench.cell import SCHEMA_VERSION, circumstances
from hf_peft_recipes.bench.suite import Line, find_line, is_result, read_lines, with_line, write_lines
from hf_peft_recipes.measure.facts import code_digest


def _all(cell: Any, place: Place) -> bool:
    return True


@dataclass(frozen=True)
class Part:
    """What a part consists of. Cells are dataclasses with a `name`."""

    cells: Callable[[Place], Sequence[Any]]
    """Most telling first."""
    run: Callable[[Any, Place], Line]
    """Returns what the cell adds to its line, its `status` at least."""
    seconds: Callable[[Any, Place], float]
    """How long a cell will take, models that are not there yet included: a rough guess on the safe side."""
    models: Callable[[Any], Iterable[Model]]
    """That a cell needs on the disk."""
    wanted: Callable[[Any, Place], bool] = _all
    """Whether a cell is worth its time on this machine; asked when its turn comes, since planning takes time too."""


@dataclass
class Outcome:
    """What became of a part."""

    lines: list[Line] = field(default_factory=list)
    """Measured now."""
    known: int = 0
    """Cells that had a result."""
    left_out: list[str] = field(default_factory=list)
    """Cells that are not for this machine."""
    left: list[str] = field(default_factory=list)
    """Cells for which the time did not last."""


@dataclass(frozen=True)
class Ledger:
    """Where results are, and which of them count."""

    path: Path
    """Of this part's file."""
    committed: Path
    """Of earlier results, which are read only."""
    keep: bool = False
    """Take results of other code too."""
    commit: str | None = None
    dry_run: bool = False

    def rank(self, cells: Sequence[Any]) -> tuple[list[Any], int]:
        """Return the cells to run, those without any result first, and how many have one."""
        lines = [*read_lines(self.path), *read_lines(self.committed)]
        results = [line for line in lines if is_result(line, self.keep)]
        left = [cell for cell in cells if find_line(results, cell) is None]
        order = sorted(left, key=lambda cell: find_line(lines, cell) is not None)
        return order, len(cells) - len(left)

    def write(self, line: Line) -> None:
        """Put the line into the file, in place of an earlier one of its name."""
        write_lines(self.path, with_line(read_lines(self.path), line))


def run_part(
    part: Part,
    place: Place,
    ledger: Ledger,
    seconds: float,
    told: Callable[[Line], None] = lambda line: None,
    after: Iterable[Model] = (),
) -> Outcome:
    """Run what has no result yet, as long as the time lasts.

    Args:
        part: to run.
        place: where.
        ledger: its results.
        seconds: that may pass; a cell that would take longer than what is left of them is not started.
        told: is called with each line.
        after: models that are needed when the part is over.

    Raises:
        UserError: a result file that is none.
    """
    started, outcome, after = time.monotonic(), Outcome(), list(after)
    order, outcome.known = ledger.rank(part.cells(place))
    for position, cell in enumerate(order):
        if time.monotonic() - started + part.seconds(cell, place) > seconds:
            outcome.left.append(cell.name)
            continue
        if not part.wanted(cell, place):
            outcome.left_out.append(cell.name)
            continue
        later = [model for other in order[position + 1 :] for model in part.models(other)]
        place.make_room(part.models(cell), [*later, *after])
        line = _line(part, cell, place) | {"commit": ledger.commit, "code": code_digest(), "dry_run": ledger.dry_run}
        ledger.write(line)
        outcome.lines.append(line)
        told(line)
    return outcome


def _line(part: Part, cell: Any, place: Place) -> Line:
    began = time.monotonic()
    line: Line = {"schema_version": SCHEMA_VERSION, "name": cell.name, "cell": asdict(cell)}
    try:
        line |= part.run(cell, place)
    except Exception as error:  # a cell that cannot be measured must not cost the others their time
        line |= {"status": "failed", "error": f"{type(error).__name__}: {error}"[-500:]}
    return {**circumstances(), **line, "seconds": time.monotonic() - began}

"""The trajectory of a run: what each optimizer step was fed and what came of it, a JSON line a step.

Two runs that are to be the same, as one that was killed and resumed and one that was not, are compared by it. The
digest of what a step was fed does not depend on how the step was cut into rows, micro-batches and processes: packed
and padded rows, 8 × 1 and 1 × 8 give the same for the same documents.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

_SIDES = ("chosen_", "rejected_")
_NO_LOSS = -100


@dataclass(frozen=True)
class Point:
    """One optimizer step, over all its micro-batches and processes."""

    step: int
    batch: str
    """A digest of the documents that the step was fed, in no order."""
    loss: float
    """As it was differentiated: of objectives that weigh by tokens, the mean over all tokens of the step."""
    grad_norm: float | None
    """Before clipping; None where the trainer takes none."""
    learning_rate: float | None


class Trajectory:
    """Appends a line to a file at each optimizer step of a trainer; a run that goes on appends to the same file.

    Args:
        path: of the file; a half line that a kill left is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._documents: list[str] = []
        self._losses: list[torch.Tensor] = []
        self._step: int | None = None

    def watch(self, trainer: Any) -> None:
        """Follow the trainer from now on: what its loss is computed on, and what each step ends with."""
        compute, train, conclude = trainer.compute_loss, trainer.training_step, trainer._maybe_log_save_evaluate

        def computed(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            if model.training:
                # Before the loss, which may take things out of its inputs.
                self._documents += documents(inputs)
            return compute(model, inputs, *arguments, **options)

        def trained(*arguments: Any, **options: Any) -> Any:
            loss = train(*arguments, **options)
            self._losses.append(loss.detach())
            return loss

        def concluded(tr_loss: Any, grad_norm: Any, *arguments: Any, **options: Any) -> Any:
            # At the end of an epoch, upstream comes here once more, without a step.
            if trainer.state.global_step != self._step:
                self._step = trainer.state.global_step
                self._write(trainer, grad_norm, options.get("learning_rate"))
            return conclude(tr_loss, grad_norm, *arguments, **options)

        trainer.compute_loss, trainer.training_step = computed, trained
        trainer._maybe_log_save_evaluate = concluded
        if trainer.is_world_process_zero():
            _cut_half_line(self._path)

    def _write(self, trainer: Any, grad_norm: Any, learning_rate: Any) -> None:
        # In float64, so that the sum is one of the losses and not of its own rounding.
        loss = float(torch.stack([loss.double() for loss in self._losses]).sum())
        found = [(self._documents, loss)]
        if trainer.args.world_size > 1:
            found = gather_object(found)
        self._documents, self._losses = [], []
        if not trainer.is_world_process_zero():
            return
        point = Point(
            trainer.state.global_step,
            _digest(sorted(document for listed, _ in found for document in listed)),
            sum(loss for _, loss in found) / len(found),
            None if grad_norm is None else float(grad_norm),
            None if learning_rate is None else float(learning_rate),
        )
        with self._path.open("ab") as file:
            file.write(_line(point))


def read_trajectory(path: Path) -> list[Point]:
    """Return the points of a file in the order in which they were written; a half line at its end is left out.

    Args:
        path: of the file, which a run that was killed and resumed has appended to twice: steps may stand there twice.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [_point(json.loads(line)) for line in lines]


def documents(inputs: Mapping[str, Any]) -> Iterator[str]:
    """Yield a digest of each document in a micro-batch: its tokens, and which of them are learned.

    Args:
        inputs: what a trainer's loss is computed on: `input_ids` of shape (rows, positions), with `position_ids` that
            begin again at every document, or an `attention_mask` of the same shape; or `prompt_ids` with
            `completion_ids`; or the two sides of pairs, `chosen_…` and `rejected_…`.
    """
    if "completion_ids" in inputs:
        parts = [(inputs[f"{part}_ids"], inputs[f"{part}_mask"]) for part in ("prompt", "completion")]
        for row in range(len(parts[0][0])):
            yield _digest([ids[row][mask[row].bool()].tolist() for ids, mask in parts])
        return
    if "input_ids" not in inputs:
        for side in _SIDES:
            taken = {name.removeprefix(side): value for name, value in inputs.items() if name.startswith(side)}
            yield from (_digest([side, document]) for document in documents(taken))
        return
    ids, labels = inputs["input_ids"], inputs.get("labels", inputs.get("completion_mask"))
    # Labels of whole texts, and targets of their own, are no tokens' labels.
    aligned = labels is not None and labels.shape == ids.shape
    for row, (first, last) in _bounds(inputs):
        at = slice(first, last)
        # Nothing predicts a document's first token; where it is masked depends on how it is packed.
        told = labels[row, first + 1 : last] if aligned else None if labels is None else _kept(labels[row])
        judged = inputs["label"][row].item() if "label" in inputs else None
        yield _digest([ids[row, at].tolist(), None if told is None else told.tolist(), judged])


def _bounds(inputs: Mapping[str, Any]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield each document's row, its first position and the one behind its last."""
    ids, mask, positions = inputs["input_ids"], inputs.get("attention_mask"), inputs.get("position_ids")
    for row in range(len(ids)):
        real = torch.ones_like(ids[row]) if mask is None or mask.dim() != 2 else mask[row]
        places = real.nonzero().flatten().tolist()
        if not places:
            continue
        starts = [at for at in places if positions is not None and int(positions[row, at]) == 0] or places[:1]
        yield from ((row, pair) for pair in zip(starts, [*starts[1:], places[-1] + 1], strict=True))


def _kept(labels: torch.Tensor) -> torch.Tensor:
    """Return a row of labels without its padding."""
    return labels[labels != _NO_LOSS]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _line(point: Point) -> bytes:
    # What is no number is a word: JSON has none for it.
    told = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in vars(point).items()
    }
    return json.dumps(told).encode() + b"\n"


def _point(line: Mapping[str, Any]) -> Point:
    told = {name: float(line[name]) for name in ("loss", "grad_norm", "learning_rate") if line[name] is not None}
    return Point(**{**line, **told})


def _cut_half_line(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    whole = path.read_bytes().rpartition(b"\n")[0]
    os.truncate(path, len(whole) + 1 if whole else 0)

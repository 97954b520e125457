"""Answers that were drawn and not learned from yet, in a checkpoint: each process keeps its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def write_answers(
    checkpoint: Path, process: int, processes: int, step: int, parts: Sequence[Mapping[str, Any]]
) -> None:
    """Write the answers of one process.

    Args:
        checkpoint: folder that is written.
        process: number of this one.
        processes: how many there are.
        step: micro-batches that were learned from.
        parts: of the answers, each what the loss is computed on; none where all were learned from. Where anything but
            tensors stands in them, as the sizes of images do, none is kept, and answers will be drawn anew.
    """
    values = [value for part in parts for value in part.values() if value is not None]
    kept = parts if all(isinstance(value, torch.Tensor) for value in values) else []
    # Parts are views of one tensor, which would be written as a whole each time.
    tensors = {
        f"{number}.{name}": value.clone().contiguous()
        for number, part in enumerate(kept)
        for name, value in part.items()
        if value is not None
    }
    told = {"step": str(step), "processes": str(processes), "parts": str(len(kept))}
    save_file(tensors, _file(checkpoint, process), metadata=told)


def read_answers(checkpoint: Path, process: int, processes: int) -> tuple[int, list[dict[str, Any]]] | None:
    """Return the micro-batches that were learned from, and the parts of the answers; None where there are none for it.

    Args:
        checkpoint: folder to go on from.
        process: number of this one.
        processes: how many go on.
    """
    file = _file(checkpoint, process)
    if not file.is_file():
        return None
    with safe_open(file, "pt") as stored:
        told = stored.metadata()
        if int(told["processes"]) != processes:
            return None
        parts: list[dict[str, Any]] = [{} for _ in range(int(told["parts"]))]
        names = stored.keys()
        for key in names:
            number, _, name = key.partition(".")
            parts[int(number)][name] = stored.get_tensor(key)
    return int(told["step"]), parts


def _file(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"answers_{process}.safetensors"

"""Where the suite runs: the machine, the folder for models, and whether it is only tried."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hf_peft_recipes.bench.shapes import file_bytes, model_folder
from hf_peft_recipes.device import Device

Model = tuple[str, bool]
"""A shape, and whether its linear layers lie in NF4 on the disk."""

WRITTEN_BYTES_A_SECOND = 0.7e9
"""Of a model that is made: drawn, copied from the GPU, written."""


@dataclass(frozen=True)
class Place:
    """What a cell finds."""

    scratch: Path
    """For models and rows."""
    device: Device
    dry_run: bool = False
    """Tiny models and two steps, on whatever there is."""
    peer_site: Path | None = None
    """Folder of packages that another framework needs in place of ours."""

    @property
    def models(self) -> Path:
        """The folder below which models lie."""
        return self.scratch / "models"

    def making_seconds(self, models: Iterable[Model]) -> float:
        """Return how long it takes to make those of the models that are not there yet, roughly."""
        return sum(
            15 + file_bytes(*model) / WRITTEN_BYTES_A_SECOND
            for model in models
            if not (model_folder(self.models, *model) / "config.json").is_file()
        )

    def make_room(self, now: Iterable[Model], later: Iterable[Model]) -> None:
        """Remove models that no later cell needs, and others too where those of this cell would not fit beside them.

        Args:
            now: models of the cell that comes next.
            later: of all that come after it.
        """
        self.models.mkdir(parents=True, exist_ok=True)
        needed = {model_folder(self.models, *model): file_bytes(*model) for model in now}
        kept = {model_folder(self.models, *model) for model in later}
        missing = sum(size for folder, size in needed.items() if not (folder / "config.json").is_file())
        others = [folder for folder in self.models.iterdir() if folder not in needed]
        for folder in sorted(others, key=lambda folder: folder in kept):
            if folder not in kept or missing > 0.95 * shutil.disk_usage(self.models).free:
                shutil.rmtree(folder)

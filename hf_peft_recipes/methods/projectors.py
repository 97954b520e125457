"""GaLore's and APOLLO's optimizers keep objects in their states, which torch reads back only where they are named."""

from importlib import import_module

import torch

PROJECTORS = {
    "galore": (("galore_torch.galore_projector", "GaLoreProjector"),),
    "apollo": (
        ("apollo_torch.random_projector", "GradientProjector"),
        ("apollo_torch.svd_projector", "GaLoreProjector"),
    ),
}
"""First word of an optimizer's name to module and class of what it keeps."""


def trust_projectors(optimizer: str) -> None:
    """Let `--resume` read the states of an optimizer, by its name in `training.optim`: plain numbers and tensors."""
    kept = PROJECTORS.get(optimizer.partition("_")[0], ())
    torch.serialization.add_safe_globals([getattr(import_module(module), name) for module, name in kept])

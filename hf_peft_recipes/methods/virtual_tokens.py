"""P-tuning and prefix tuning: virtual tokens that a small network makes, which are saved without it.

PEFT writes what the network makes of its inputs, and no more (Liu et al. 2021, arXiv:2103.10385; Li and Liang 2021,
arXiv:2101.00190, section 4.3: once trained, the network is dropped). A checkpoint must hold it too: upstream puts what
the network made in the place of what it makes it of, and trains on from there without a word.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.methods.step import Step

NETWORK_FILE = "virtual_token_network.safetensors"
"""In a checkpoint: the network and its inputs."""


def serves(adapter: Mapping[str, Any]) -> bool:
    """Return whether the section is that of virtual tokens behind a network."""
    return str(adapter.get("peft_type")).upper() in ("P_TUNING", "PREFIX_TUNING")


class VirtualTokens(Step):
    """Keeps the network while training may go on from a checkpoint, and drops it in the end, as the files do."""

    def attach(self, trainer: Any) -> None:
        """Let checkpoints hold the network, and loading them bring it back."""
        adapter = trainer.model.active_adapter
        if not _has_network(trainer.model, adapter):
            return
        network = Network(trainer.model.prompt_encoder[adapter])
        trainer.add_callback(network)
        load, load_best = trainer._load_from_checkpoint, trainer._load_best_model

        def loaded(checkpoint: str, model: Any = None) -> None:
            network.take(Path(checkpoint), lambda: load(checkpoint, model))

        def loaded_best() -> None:
            network.take(Path(trainer.state.best_model_checkpoint), load_best)

        trainer._load_from_checkpoint, trainer._load_best_model = loaded, loaded_best

    def finish(self, model: Any) -> None:
        """Put in the network's place what it makes."""
        adapter = model.active_adapter
        if not _is_of_virtual_tokens(model, adapter):
            return
        encoder, config = model.prompt_encoder[adapter], model.peft_config[adapter]
        made = model.get_prompt_embedding_to_save(adapter).to(encoder.embedding.weight.device)
        for name in [name for name, _ in encoder.named_children() if name != "embedding"]:
            delattr(encoder, name)
        encoder.embedding = torch.nn.Embedding.from_pretrained(made, freeze=False)
        config.inference_mode = True


class Network(TrainerCallback):
    """The network as a part of checkpoints.

    Args:
        encoder: PEFT's, the inputs as its `embedding` and what makes virtual tokens of them.
    """

    def __init__(self, encoder: torch.nn.Module) -> None:
        self._encoder = encoder

    def write_part(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        save_file(
            {name: value.contiguous() for name, value in self._encoder.state_dict().items()}, folder / NETWORK_FILE
        )

    def take(self, checkpoint: Path, load: Callable[[], None]) -> None:
        """Load what upstream loads of a checkpoint, and the network.

        Args:
            checkpoint: its folder.
            load: upstream's way, which takes what the network has made for its inputs.

        Raises:
            UserError: the checkpoint was written without the network.
        """
        file = checkpoint / NETWORK_FILE
        if not file.is_file():
            raise UserError(
                f"{str(checkpoint)!r} holds virtual tokens without the network that makes them, which cannot be "
                "trained on; --overwrite begins anew"
            )
        inputs = self._encoder.embedding
        # Behind a projection, what it makes is of another size than its inputs: upstream would fail.
        self._encoder.embedding = _Taker(inputs.weight.device)
        try:
            load()
        finally:
            self._encoder.embedding = inputs
        self._encoder.load_state_dict(load_file(file))


class _Taker(torch.nn.Module):
    """Takes any embedding that is loaded, and keeps none."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def load_state_dict(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


def _is_of_virtual_tokens(model: Any, adapter: str) -> bool:
    """Return whether the adapter is one of these; a caller's own model may have any."""
    return serves({"peft_type": model.peft_config[adapter].peft_type.value})


def _has_network(model: Any, adapter: str) -> bool:
    """Return whether more than an embedding makes the virtual tokens, which prefix tuning alone does not ask for."""
    return _is_of_virtual_tokens(model, adapter) and len(list(model.prompt_encoder[adapter].children())) > 1


make = VirtualTokens

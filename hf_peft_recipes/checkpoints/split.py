"""Checkpoints of a model that FSDP2 has split: of an adapter what trains, and nothing of its base.

With `adapter_only` accelerate 1.15 leaves frozen parameters out by their names; a head that is tied to the embedding
has a second name, and is copied into each checkpoint (seen with torch 2.13). The shards of all processes are in it
since https://github.com/huggingface/accelerate/pull/4206.
"""

from pathlib import Path
from typing import Any

from hf_peft_recipes.sharding import trained_tensors, whole_state

_MODEL_FILE = "pytorch_model_fsdp.bin"
_SCHEDULER_FILE = "scheduler.pt"
"""Upstream's names, by which it finds them again."""


class SplitCheckpoints:
    """A trainer, mixed in before upstream's, that keeps the base out of the checkpoints of a split adapter."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write what training goes on from; all processes come here, the first one writes."""
        import torch
        from accelerate.utils import save_fsdp_optimizer

        trainer: Any = self
        accelerator, model = trainer.accelerator, trainer.model
        plugin = getattr(accelerator.state, "fsdp_plugin", None)
        full = plugin is not None and "FULL_STATE_DICT" in str(plugin.state_dict_type)
        if not (full and accelerator.is_fsdp2 and hasattr(model, "peft_config")):
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        tensors = trained_tensors(model, whole_state(model))
        if trainer.args.should_save:
            torch.save(tensors, Path(output_dir) / _MODEL_FILE)
        save_fsdp_optimizer(plugin, accelerator, trainer.optimizer, model, output_dir)
        if trainer.args.should_save:
            torch.save(trainer.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER_FILE)

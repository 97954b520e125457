"""Plain TRL on prepared rows: its defaults, or its best flags on a CPU. Run by `benchmarks.against_trl`.

    python -m benchmarks.peers.plain_trl MODEL ROWS.jsonl STEPS defaults|best

Prints one JSON line.
"""

import json
import sys
import tempfile
import time
from typing import Any

import psutil
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from hf_peft_recipes.measure.clock import StepClock
from hf_peft_recipes.measure.memory import peak_memory_bytes, reset_peak

BEST: dict[str, Any] = {
    "packing": True,
    "packing_strategy": "bfd_split",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "gradient_checkpointing": False,
}
"""TRL's own flags at their fastest on this class of machine: a bfloat16 model, packed, one row at a time."""


class _FirstLog(TrainerCallback):
    """Logs the first and the last step, so that tokens can be counted between them."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = state.global_step in (1, state.max_steps)


def main() -> None:
    """Train, and print what it cost."""
    model, rows, steps, flags = sys.argv[1:]
    options = BEST if flags == "best" else {}
    if flags == "best":
        # Loaded by the caller: TRL loads a model that is given by name in float32.
        base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    else:
        base = model
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=int(steps),
            learning_rate=2e-4,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            **options,
        )
        clock = StepClock()
        trainer = SFTTrainer(
            model=base,
            args=arguments,
            train_dataset=load_dataset("json", data_files=rows, split="train"),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[clock, _FirstLog()],
        )
        reset_peak()
        trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    printed = {
        "tokens_per_second": clock.tokens_per_second(),
        "step_seconds": clock.step_median_seconds(),
        "peak_memory_bytes": peak_memory_bytes(),
        "first_step_seconds": clock.first_step_seconds,
        "last_loss": losses[-1],
        "process_seconds": time.time() - psutil.Process().create_time(),
    }
    print(json.dumps(printed))


if __name__ == "__main__":
    main()

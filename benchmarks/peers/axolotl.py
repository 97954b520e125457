"""Axolotl on the job's rows, by its own `do_cli`. Runs in the environment `axolotl`.

python -m benchmarks.peers.axolotl JOB.json
"""

import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.job import LORA, Job, read_job
from benchmarks.peers.recording import watching

_ON_CPU = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)
"""Its kernels are written in Triton."""


def config(job: Job, folder: Path) -> dict[str, Any]:
    """Return Axolotl's configuration of the job; JSON is YAML too."""
    training = job.training()
    rows = {
        "path": job.rows, "ds_type": "json", "type": "chat_template", "field_messages": "messages",
        "roles_to_train": ["assistant"], "train_on_eos": "turn", "eot_tokens": ["<|end|>"],
    }  # fmt: skip
    return {
        "base_model": job.model, "adapter": job.recipe, "load_in_4bit": job.recipe == "qlora", "datasets": [rows],
        "chat_template": "tokenizer_default", "eot_tokens": ["<|end|>"], "sequence_len": job.length,
        "sample_packing": job.packed, "pad_to_sequence_len": False, "val_set_size": 0, "lora_r": LORA["r"],
        "lora_alpha": LORA["lora_alpha"], "lora_dropout": LORA["lora_dropout"], "lora_target_linear": True,
        "micro_batch_size": job.batch, "gradient_accumulation_steps": job.accumulation, "max_steps": job.steps,
        "learning_rate": job.learning_rate, "lr_scheduler": job.schedule, "warmup_steps": 0, "optimizer": job.optimizer,
        "weight_decay": training["weight_decay"], "max_grad_norm": job.max_grad_norm, "seed": job.seed,
        "bf16": training["bf16"], "gradient_checkpointing": False, "attn_implementation": "sdpa", "save_strategy": "no",
        "shuffle_merged_datasets": False, "shuffle_before_merging_datasets": False,
        "dataset_prepared_path": str(folder / "prepared"), "output_dir": str(folder / "out"), "num_epochs": 1,
        **({} if torch.cuda.is_available() else _ON_CPU),
    }  # fmt: skip


def _on_cpu() -> None:
    """Set transformers' `use_cpu`, for which Axolotl has no key."""
    from transformers import TrainingArguments

    check = TrainingArguments.__post_init__

    def check_on_cpu(arguments: Any) -> None:
        arguments.use_cpu = True
        check(arguments)

    TrainingArguments.__post_init__ = check_on_cpu


def main() -> None:
    """Train, and print the record in one line."""
    job = read_job()
    with tempfile.TemporaryDirectory() as scratch, watching(job) as recorder, redirect_stdout(sys.stderr):
        from axolotl.cli.train import do_cli

        if not torch.cuda.is_available():
            _on_cpu()

        path = Path(scratch) / "config.yaml"
        path.write_text(json.dumps(config(job, Path(scratch))), encoding="utf-8")
        do_cli(str(path))
    print(json.dumps(recorder.report("axolotl")))


if __name__ == "__main__":
    main()

"""Plain TRL on the job's rows: `SFTTrainer` with the flags of the contender's line in the table.

python -m benchmarks.peers.plain_trl JOB.json
"""

import json
import sys
import tempfile
from contextlib import redirect_stdout
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import ModelConfig, SFTConfig, SFTTrainer, get_quantization_config

from benchmarks.peers.job import LORA, Job, read_job
from benchmarks.peers.recording import watching


def build_trainer(job: Job, folder: str) -> Any:
    """Return TRL's trainer for the job, writing nothing but into `folder`."""
    training = dict(job.settings.get("training", {}))
    if job.matched:
        training = {**job.training(), "max_length": job.length, **training}
        training |= {"packing": job.packed, "model_init_kwargs": {"dtype": job.dtype}}
    quantization = {**job.settings.get("quantization", {})}
    if quantization:
        quantization["dtype"] = job.dtype
    arguments = SFTConfig(
        output_dir=folder,
        max_steps=job.steps,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **training,
    )
    return SFTTrainer(
        model=job.model,
        args=arguments,
        train_dataset=load_dataset("json", data_files=job.rows, split="train"),
        quantization_config=get_quantization_config(ModelConfig(**quantization)) if quantization else None,
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    )


def main() -> None:
    """Train, and print the record in one line."""
    job = read_job()
    with tempfile.TemporaryDirectory() as folder, watching(job) as recorder, redirect_stdout(sys.stderr):
        build_trainer(job, folder).train()
    print(json.dumps(recorder.report()))


if __name__ == "__main__":
    main()

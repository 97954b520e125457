"""Unsloth on the job's rows, as its notebooks do it. Runs in the environment `unsloth`, on a GPU; never run so far.

python -m benchmarks.peers.unsloth JOB.json
"""

import json
import sys
import tempfile
from contextlib import redirect_stdout
from typing import Any

from benchmarks.peers.job import LORA, Job, give_up, read_job

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""All linear layers of a Llama: Unsloth wants them by name."""


def import_unsloth() -> Any:
    """Return the package, which must be imported before transformers; where it refuses, end with what it says."""
    try:
        with redirect_stdout(sys.stderr):
            import unsloth
    except (ImportError, NotImplementedError, RuntimeError, OSError) as error:
        give_up(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return unsloth


def build_trainer(job: Job, unsloth: Any, folder: str) -> Any:
    """Return TRL's trainer on Unsloth's model."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        job.model, max_seq_length=job.length, load_in_4bit=job.recipe == "qlora", dtype=None
    )
    adapter = {**LORA, "target_modules": LINEAR}
    model = unsloth.FastLanguageModel.get_peft_model(
        model, **adapter, use_gradient_checkpointing=False, random_state=job.seed
    )
    arguments = SFTConfig(
        output_dir=folder, max_steps=job.steps, max_length=job.length, packing=job.packed, report_to="none",
        save_strategy="no", disable_tqdm=True, assistant_only_loss=True, **job.training(),
    )  # fmt: skip
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=load_dataset("json", data_files=job.rows, split="train"),
        processing_class=tokenizer,
    )


def main() -> None:
    """Train, and print the record in one line."""
    job, unsloth = read_job(), import_unsloth()
    from benchmarks.peers.recording import watching

    with tempfile.TemporaryDirectory() as folder, watching(job) as recorder, redirect_stdout(sys.stderr):
        build_trainer(job, unsloth, folder).train()
    print(json.dumps(recorder.report("unsloth")))


if __name__ == "__main__":
    main()

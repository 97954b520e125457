"""LLaMA-Factory on the job's rows, by its own `run_exp`. Runs in the environment `llamafactory`.

python -m benchmarks.peers.llamafactory JOB.json
"""

import json
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.peers.job import LORA, Job, read_job
from benchmarks.peers.recording import watching

TEMPLATE = "peers"


def arguments(job: Job, folder: Path) -> dict[str, Any]:
    """Return what LLaMA-Factory's YAML file of the job would hold, having written its description of the rows."""
    turns = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    told = {"file_name": job.rows, "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": turns}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": told}), encoding="utf-8")
    return {
        **job.training(), "stage": "sft", "do_train": True, "model_name_or_path": job.model, "max_steps": job.steps,
        "dataset_dir": str(folder), "dataset": "rows", "template": TEMPLATE, "cutoff_len": job.length,
        "packing": job.packed, "neat_packing": job.packed, "finetuning_type": "lora", "lora_target": "all",
        "lora_rank": LORA["r"], "lora_alpha": LORA["lora_alpha"], "lora_dropout": LORA["lora_dropout"],
        "flash_attn": "sdpa", "disable_gradient_checkpointing": True, "use_cpu": not torch.cuda.is_available(),
        "output_dir": str(folder / "out"), "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        **({"quantization_bit": 4, "double_quantization": True} if job.recipe == "qlora" else {}),
    }  # fmt: skip


def _without_audio() -> None:
    """Let LLaMA-Factory import torchaudio, which it uses for sound alone and which has no build for this torch."""
    stand_in = ModuleType("torchaudio")
    stand_in.__spec__ = ModuleSpec("torchaudio", None)
    sys.modules.setdefault("torchaudio", stand_in)


def _add_template() -> None:
    """Add the embedded tokenizer's chat template: LLaMA-Factory has its own way of writing them."""
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import register_template

    register_template(
        name=TEMPLATE,
        format_user=StringFormatter(slots=["<|user|>{{content}}<|end|><|assistant|>"]),
        format_assistant=StringFormatter(slots=["{{content}}<|end|>"]),
    )


def main() -> None:
    """Train, and print the record in one line."""
    job = read_job()
    _without_audio()
    with tempfile.TemporaryDirectory() as scratch, watching(job) as recorder, redirect_stdout(sys.stderr):
        from llamafactory.train.tuner import run_exp

        _add_template()
        run_exp(arguments(job, Path(scratch)))
    print(json.dumps(recorder.report("llamafactory")))


if __name__ == "__main__":
    main()

"""What one process trains: the same for every contender; read in environments of other frameworks too."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
"""Of every contender."""


@dataclass(frozen=True)
class Job:
    """One run of one contender."""

    recipe: str
    """`lora` or `qlora`."""
    model: str
    """Folder with weights in bfloat16 and tokenizer."""
    rows: str
    """JSONL file of conversations."""
    steps: int
    """Of the optimizer."""
    warmup: int
    """Steps at the start that are not timed."""
    matched: bool
    """Whether what follows holds; else the contender runs as its users find it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The contender's own, from the table."""
    adapter: str | None = None
    """Folder of LoRA weights to start from; None for those that the framework draws."""
    packed: bool = True
    """Whether documents share rows; else each is a row of its own."""
    length: int = 1024
    """Tokens of a packed row."""
    batch: int = 1
    """Rows of a micro-batch."""
    accumulation: int = 8
    """Micro-batches of a step."""
    learning_rate: float = 2e-4
    schedule: str = "cosine"
    """Without warm-up of the rate."""
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch_fused"
    dtype: str = "bfloat16"
    """Of weights and products: what our recipe takes on this device, since not every processor multiplies bfloat16."""
    seed: int = 42

    def write(self, path: Path) -> None:
        """Write the job where `read_job` finds it."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    def training(self) -> dict[str, Any]:
        """Return what is matched, as fields of transformers' TrainingArguments."""
        return {
            "per_device_train_batch_size": self.batch,
            "gradient_accumulation_steps": self.accumulation,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.schedule,
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "max_grad_norm": self.max_grad_norm,
            "optim": self.optimizer,
            "bf16": self.dtype == "bfloat16",
            "seed": self.seed,
        }


def read_job() -> Job:
    """Return the job whose file the command line names."""
    return Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def give_up(reason: str) -> None:
    """End the process, saying in one line why this contender cannot run here."""
    print(json.dumps({"unavailable": reason}))
    sys.exit(0)

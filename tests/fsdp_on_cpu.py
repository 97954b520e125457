"""The command line where FSDP2 has a path on a CPU: accelerate gives it none, torch has one over gloo.

What accelerate is told is which device and which backend there is, and nothing else: what it then does is what it does
with GPUs.
"""

import sys
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def _backend(self: Any, cpu: bool, sagemaker: bool = False, backend: str | None = None) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def _set_device(self: Any) -> None:
    self.device = torch.device("cpu")


if __name__ == "__main__":
    PartialState._prepare_backend = _backend  # type: ignore[method-assign]
    PartialState.set_device = _set_device  # type: ignore[method-assign]
    from hf_peft_recipes.cli.app import main

    sys.exit(main())

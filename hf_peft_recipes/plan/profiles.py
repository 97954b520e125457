"""How fast devices multiply and copy: data sheets for GPUs, a measurement for this machine's CPU."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes.device import Device


@dataclass(frozen=True)
class Profile:
    """Rates that a training step can be held against."""

    half_flops: float
    """Of matrix products in 16 bits, a second."""
    single_flops: float
    """Of matrix products in float32, a second."""
    copy_bytes: float
    """Read and written, a second."""
    source: str
    sheet_flops: tuple[float, float] | None = None
    """Of matrix products in 16 bits and in float32, as the data sheet has them."""

    def product_flops(self, item_bytes: int) -> float:
        """Return the rate of matrix products, a second.

        Args:
            item_bytes: of the numbers that are multiplied, 2 or 4.
        """
        return self.half_flops if item_bytes == 2 else self.single_flops

    def peak_flops(self, item_bytes: int) -> float:
        """Return what shares of the peak are shares of: the data sheet's rate, else the measured one.

        Args:
            item_bytes: as `product_flops` has it.
        """
        if self.sheet_flops is None:
            return self.product_flops(item_bytes)
        return self.sheet_flops[0 if item_bytes == 2 else 1]


REACHED_PRODUCTS, REACHED_COPIES = 0.80, 0.90
"""Shares of the data sheet that were measured on an H200: 788 of 989 TFLOP/s, 4.3 of 4.8 TB/s."""

_SHEETS = {
    # Dense tensor-core rates in bfloat16 (float16 on T4 and V100) with float32 sums, rates in float32 as torch
    # multiplies unless TF32 is asked for, and memory bandwidth: NVIDIA.
    "T4": (65e12, 8.1e12, 0.32e12),
    "V100": (125e12, 15.7e12, 0.9e12),
    "RTX 3090": (71e12, 35.6e12, 0.936e12),
    "RTX 4090": (165e12, 82.6e12, 1.008e12),
    "RTX 5090": (209e12, 104.8e12, 1.792e12),
    "A10G": (70e12, 35e12, 0.6e12),
    "L4": (121e12, 30.3e12, 0.3e12),
    "L40S": (362e12, 91.6e12, 0.864e12),
    "RTX A6000": (155e12, 38.7e12, 0.768e12),
    "A100": (312e12, 19.5e12, 2.039e12),
    "H100": (989e12, 66.9e12, 3.35e12),
    "H200": (989e12, 66.9e12, 4.8e12),
    "B200": (2250e12, 75e12, 8.0e12),
}


def find_profile(device: Device) -> Profile | None:
    """Return the rates of the device; None for one that is neither in the table nor measured."""
    if device.kind == "cpu":
        return _read(_path(device))
    # The longest name first: an L40S is no L4.
    for name in sorted(_SHEETS, key=len, reverse=True):
        if name.lower() in device.name.lower():
            half, single, copies = _SHEETS[name]
            source = "data sheet, at the shares that an H200 reached; not measured"
            reached = (half * REACHED_PRODUCTS, single * REACHED_PRODUCTS, copies * REACHED_COPIES)
            return Profile(*reached, source, (half, single))
    return None


def measure_cpu(device: Device, seconds: float = 0.5) -> Profile:
    """Return the rates of this machine's CPU, measured now and kept below HF_HOME; needs torch.

    Where others use the machine too it shows less at times, and never more: of each rate the highest ever seen is kept.

    Args:
        device: this machine's.
        seconds: spent on each of the rates.
    """
    import torch

    def products(dtype: torch.dtype, size: int) -> float:
        left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
        return _rate(lambda: left @ right, seconds) * 2 * size**3

    # Without instructions for it bfloat16 is a hundred times slower than float32.
    half, single = products(torch.bfloat16, 1024 if device.bf16 else 128), products(torch.float32, 1024)
    block = torch.zeros(64 * 2**20, dtype=torch.uint8)
    target = torch.empty_like(block)
    copies = _rate(lambda: target.copy_(block), seconds) * 2 * block.numel()
    path, rates = _path(device), (half, single, copies)
    if before := _read(path):
        known = (before.half_flops, before.single_flops, before.copy_bytes)
        rates = tuple(map(max, rates, known))
    profile = Profile(*rates, f"measured on this machine with {torch.get_num_threads()} threads")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(profile)), encoding="utf-8")
    return profile


def _rate(work: Any, seconds: float) -> float:
    """Return how often a second the work can be done: of its repeats, the fastest, which nothing else disturbed."""
    work()
    end, fastest = time.perf_counter() + seconds, math.inf
    while (start := time.perf_counter()) < end:
        work()
        fastest = min(fastest, time.perf_counter() - start)
    return 1 / fastest


def _path(device: Device) -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    key = f"{device.name} {device.bf16} {platform.machine()} {os.environ.get('OMP_NUM_THREADS', '')}"
    return home / "hf_peft_recipes" / f"cpu-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def _read(path: Path) -> Profile | None:
    try:
        return Profile(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None

"""Where a step's time goes: kernels on a GPU, operators on a CPU, in groups that a person can act on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

TOP = 25

GROUPS = (
    # The first that fits: attention's kernels are made with the tools of matrix products.
    ("attention", r"flash|fmha|attention|sdpa|scaled_dot_product|varlen_att"),
    ("loss head", r"^_(?:forward|backward)_kernel\b"),
    ("dequantization", r"dequant"),
    (
        "matrix products",
        r"gemm|gemv|cutlass|nvjet|xmma|cublas|wgmma|::(?:add|b|badd)?(?:mm|bmm)_?\b|matmul|mkldnn_linear",
    ),
    ("optimizer", r"adam|multi_tensor|_foreach|lpnorm|clip_grad"),
    (
        "copies",
        r"memcpy|memset|copy|::(?:to|clone|cat|contiguous|fill_?|zero_?|index_select|slice_backward)\b|CatArray",
    ),
)
"""Group to what its kernels and operators are called, as a regular expression."""
REST, IDLE = "element-wise", "idle"
"""What no pattern fits, and the time in which nothing ran."""


@dataclass(frozen=True)
class StepProfile:
    """One optimizer step, kernel by kernel."""

    seconds: float
    """From its start to its end."""
    by: str
    """`kernel` or `operator`."""
    kernels: dict[str, tuple[float, int]]
    """Name to seconds and number of calls."""

    def shown(self) -> dict[str, Any]:
        """Return the shares of the groups, and the kernels that take most, as JSON has it."""
        busy = sum(seconds for seconds, _ in self.kernels.values())
        whole = max(self.seconds, busy)
        groups = {IDLE: whole - busy}
        for name, (seconds, _) in self.kernels.items():
            groups[group_of(name)] = groups.get(group_of(name), 0.0) + seconds
        ordered = sorted(groups.items(), key=lambda item: -item[1])
        top = sorted(self.kernels.items(), key=lambda item: -item[1][0])[:TOP]
        return {
            "by": self.by,
            "step_seconds": self.seconds,
            "busy_seconds": busy,
            "shares": {name: seconds / whole for name, seconds in ordered} if whole else {},
            "top": [
                {
                    "name": name[:200], "group": group_of(name), "seconds": seconds, "share": seconds / whole,
                    "calls": calls,
                }
                for name, (seconds, calls) in top
            ],
        }  # fmt: skip


def group_of(name: str) -> str:
    """Return the group of a kernel or operator."""
    return next((group for group, pattern in GROUPS if re.search(pattern, name, re.I)), REST)


def read_profile(profiler: Any) -> StepProfile:
    """Return what torch's profiler saw of one step.

    Args:
        profiler: that has ended.
    """
    from torch.autograd import DeviceType

    averages = profiler.key_averages()
    on_gpu = [event for event in averages if event.device_type == DeviceType.CUDA]
    events = profiler.events()
    started = min((event.time_range.start for event in events), default=0)
    ended = max((event.time_range.end for event in events), default=0)
    kernels = {
        event.key: (
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6, event.count
        )
        for event in (on_gpu or averages)
    }  # fmt: skip
    return StepProfile((ended - started) / 1e6, "kernel" if on_gpu else "operator", kernels)

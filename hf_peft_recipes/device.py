"""What the hardware is, found without importing torch, so that `list`, `show` and `plan` stay instant."""

import ctypes
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_peft_recipes.errors import UserError, did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """The facts of one machine that a recipe's rules may ask for as `device.<field>`."""

    kind: str
    """`cpu`, `cuda` or `mps`."""
    name: str
    count: int
    """Number of accelerators, 1 for a CPU."""
    memory_bytes: int
    """Of one accelerator, or of the host."""
    bf16: bool
    """Whether matrix products in bfloat16 run in hardware."""
    flash_attention: bool
    """Whether the flash_attn package can be used: then packed rows need no dense mask."""

    def facts(self) -> dict[str, Any]:
        """Return the fields as `{"device.kind": …}`, the form in which rules are matched."""
        return {f"device.{key}": value for key, value in asdict(self).items()}

    def describe(self) -> str:
        """Return one short phrase for people."""
        number = f"{self.count} × " if self.count > 1 else ""
        return f"{number}{self.name}, {self.memory_bytes / GIB:.0f} GiB"


def _gpu(name: str, gib: int, bf16: bool = True) -> Device:
    return Device("cuda", name, 1, gib * GIB, bf16, flash_attention=True)


# Memory sizes: the makers' data sheets. bf16 products need compute capability 8.0 (Ampere) or newer.
KNOWN_DEVICES = {
    "cpu": Device("cpu", "CPU", 1, 16 * GIB, bf16=False, flash_attention=False),
    "T4": replace(_gpu("T4", 16, bf16=False), flash_attention=False),
    "V100": replace(_gpu("V100", 32, bf16=False), flash_attention=False),
    "RTX3090": _gpu("RTX 3090", 24),
    "RTX4090": _gpu("RTX 4090", 24),
    "RTX5090": _gpu("RTX 5090", 32),
    "A10G": _gpu("A10G", 24),
    "L4": _gpu("L4", 24),
    "L40S": _gpu("L40S", 48),
    "A6000": _gpu("RTX A6000", 48),
    "A100": _gpu("A100", 80),
    "H100": _gpu("H100", 80),
    "H200": _gpu("H200", 141),
    "B200": _gpu("B200", 180),
}


def named_device(name: str) -> Device:
    """Return the device that is known as `name` (`H100`, `rtx4090`, `cpu` …), or a card of a size (`24GiB`, `80GB`).

    Raises:
        UserError: no device of that name is known.
    """
    if size := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:GiB|GB|G)\s*", name, re.I):
        if not float(size[1]):
            raise UserError(f"device {name!r} has no memory")
        # Makers write GB and mean GiB.
        return Device("cuda", f"a card of {size[1]} GiB", 1, int(float(size[1]) * GIB), True, flash_attention=True)
    by_key = {key.lower(): key for key in KNOWN_DEVICES}
    key = re.sub(r"[\s_-]", "", name).lower()
    if key not in by_key:
        raise UserError(f"unknown device {name!r}{did_you_mean(key, by_key)} (known: {', '.join(KNOWN_DEVICES)})")
    return KNOWN_DEVICES[by_key[key]]


@cache
def detect_device() -> Device:
    """Return the device that a run on this machine would use: the first visible GPU, else the CPU."""
    if _torch_has_cuda() and (gpu := _first_gpu()):
        return gpu
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Device("mps", "Apple GPU", 1, _host_memory_bytes(), bf16=True, flash_attention=False)
    return Device("cpu", _cpu_name(), 1, _host_memory_bytes(), _cpu_has_bf16(), flash_attention=False)


def _torch_has_cuda() -> bool:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return version.is_file() and re.search(r"^cuda\b.*= *'", version.read_text(encoding="utf-8"), re.M) is not None


def _first_gpu() -> Device | None:
    """Return the first visible GPU as NVIDIA's management library reports it, None when there is no driver or GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in ("", "-1"):
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        return _read_gpu(nvml, visible)
    finally:
        nvml.nvmlShutdown()


def _read_gpu(nvml: ctypes.CDLL, visible: str | None) -> Device | None:
    class Memory(ctypes.Structure):
        _fields_ = [(field, ctypes.c_ulonglong) for field in ("total", "free", "used")]

    count, handle, memory = ctypes.c_uint(), ctypes.c_void_p(), Memory()
    name, major, minor = ctypes.create_string_buffer(96), ctypes.c_int(), ctypes.c_int()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or count.value == 0:
        return None
    first = visible.split(",")[0].strip() if visible else "0"
    if first.isdigit():
        status = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(first)), ctypes.byref(handle))
    else:
        status = nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(handle))
    if status != 0:
        return None
    nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(96))
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    ampere = major.value >= 8
    number = len(visible.split(",")) if visible else count.value
    return Device("cuda", name.value.decode(), number, memory.total, ampere, ampere and bool(find_spec("flash_attn")))


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    match = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)
    return set(match.group(1).split()) if match else set()


def _cpu_has_bf16() -> bool:
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"})


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    match = re.search(r"^model name\s*: (.*)$", text, re.M)
    return f"{match.group(1).strip() if match else platform.machine()}, {os.cpu_count()} cores"


CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's limit stands: cgroup v2, v1 (https://docs.kernel.org/admin-guide/cgroup-v2.html)."""


def _host_memory_bytes(limits: Sequence[Path] = CGROUP_LIMITS) -> int:
    """Return the host's memory, or what a container may take of it.

    Args:
        limits: files that hold a number of bytes, or `max`; those that are not there set none.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in limits:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text):
            found.append(int(text))
    return min(found)

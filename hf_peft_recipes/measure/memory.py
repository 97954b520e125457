"""Memory of this process and of its GPU: what is in use at the most, counted anew whenever one asks."""

import ctypes
import gc
import resource
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peak:
    """The most that was in use since the last reset, in bytes. Without a GPU all but `host_bytes` are None."""

    host_bytes: int
    """Resident in host memory."""
    allocated_bytes: int | None = None
    """Of tensors on the GPU."""
    reserved_bytes: int | None = None
    """Of the caching allocator, holes included."""
    device_used_bytes: int | None = None
    """In use on the GPU now, context and other processes included; the driver keeps no peak."""


def reset_peak() -> None:
    """Begin to count the peaks anew, the process's where the kernel allows it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        # Documented in proc(5): writing 5 sets VmHWM to the present resident size.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def read_peak() -> Peak:
    """Return the peaks since the last reset."""
    import torch

    if not torch.cuda.is_available():
        return Peak(_host_bytes())
    free, total = torch.cuda.mem_get_info()
    return Peak(_host_bytes(), torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), total - free)


def peak_memory_bytes() -> int:
    """Return the peak since the last reset: allocated on the GPU, else resident in host memory."""
    peak = read_peak()
    return peak.host_bytes if peak.allocated_bytes is None else peak.allocated_bytes


def release_free_memory() -> None:
    """Give memory that is not used any more back to the system and the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        # glibc keeps freed pages for itself until asked, see malloc_trim(3).
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _host_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Kilobytes on Linux, bytes on macOS: getrusage(2) of each.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

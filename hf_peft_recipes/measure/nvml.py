"""NVIDIA's management library, asked without CUDA: what is in use of the first visible GPU, and its energy counter."""

import ctypes
import os
from functools import cache


def used_bytes() -> int | None:
    """Return what is in use of the GPU's memory, by whomever; None without a GPU."""

    class Memory(ctypes.Structure):
        _fields_ = [(field, ctypes.c_ulonglong) for field in ("total", "free", "used")]

    if (found := _open()) is None:
        return None
    library, handle = found
    memory = Memory()
    return None if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) else int(memory.used)


def spent_joules() -> float | None:
    """Return the energy that the GPU has spent since the driver was loaded; None where it does not count it."""
    if (found := _open()) is None:
        return None
    library, handle = found
    millijoules = ctypes.c_ulonglong()
    # Since Volta, says NVML's reference of nvmlDeviceGetTotalEnergyConsumption.
    failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
    return None if failed else millijoules.value / 1e3


@cache
def _open() -> tuple[ctypes.CDLL, ctypes.c_void_p] | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible in ("", "-1"):
        return None
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = ctypes.c_void_p()
    if library.nvmlInit_v2():
        return None
    if visible.isdigit():
        failed = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(visible)), ctypes.byref(handle))
    else:
        failed = library.nvmlDeviceGetHandleByUUID(visible.encode(), ctypes.byref(handle))
    return None if failed else (library, handle)

"""Bytes alive while real operations run, on the meta device or any other: what an allocator is asked for."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, from birth to death, keeps the highest sum, and counts the arithmetic.

    Torch's own `FlopCounterMode` holds on to what layers return, so its table is used here without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.flops = 0
        self._sizes: dict[int, int] = {}

    def hold(self, tensors: Any) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._count(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Run the operation and count what it made."""
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        if (formula := flop_registry.get(function._overloadpacket)) is not None:
            self.flops += formula(*arguments, **(keywords or {}), out_val=made)
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        weakref.finalize(storage, self._forget, key)
        self.live_bytes += self._sizes[key]
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)

"""What bitsandbytes does to 4-bit weights on a CPU and should not: it rewrites them, and misreads some of them."""

import warnings
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

_OPERATION = "bitsandbytes::dequantize_4bit"


def mend(model: Any) -> None:
    """Keep a model's 4-bit weights as they were made, and have them read as they were made.

    On processors with AVX-512 BF16, bitsandbytes 0.50 rewrites weights at the first evaluation, for inference only: it
    fails where the number of rows is no multiple of 32, and the frozen base is no longer what it was. Its AVX-512
    kernel takes the scales of blocks for those of rows, where a row is no whole number of blocks
    (bitsandbytes pull request 2072 tells of both ways to count): 0.25 of such a weight's norm is lost in place of 0.09.

    Args:
        model: quantised or not, loaded.
    """
    found = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for module in found:
        module.support_avx512bf16_for_cpu = False
    if found:
        _read_by_blocks()


@cache
def _read_by_blocks() -> Any:
    """Hand the CPU's kernel all weights whose rows are no whole number of blocks as a matrix of blocks; once a process.

    Returns the library that holds the kernel, which lives as long as it.
    """
    import bitsandbytes  # noqa: F401 - it registers the operation
    import torch

    upstream = torch.library.get_kernel(_OPERATION, "CPU")
    library = torch.library.Library("bitsandbytes", "IMPL")

    def dequantize(
        keys: Any, packed: Any, scales: Any, blocksize: int, kind: str, shape: Sequence[int], dtype: Any
    ) -> Any:
        size = prod(shape)
        blocks = [size // blocksize, blocksize] if size % blocksize == 0 else [1, size]
        known = blocks if shape[-1] % blocksize else list(shape)
        return upstream.call_boxed(keys, packed, scales, blocksize, kind, known, dtype).reshape(shape)

    with warnings.catch_warnings():
        # That a kernel is replaced is what is meant.
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        library.impl("dequantize_4bit", dequantize, "CPU", with_keyset=True)
    return library

"""4-bit weights on a CPU: what bitsandbytes makes of them is what was quantised, whatever the length of their rows."""

import json
import subprocess
import sys

import pytest
import torch
from zygote.client import MARK

WHOLE_AGAIN = (
    MARK
    + """
import json, torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from hf_peft_recipes.four_bit import mend

def lost():
    torch.manual_seed(0)
    for rows, columns, dtype in [(64, 160, torch.bfloat16), (64, 96, torch.float32), (64, 128, torch.float32), (5, 7, torch.float32)]:
        weight = torch.randn(rows, columns)
        packed, state = quantize_4bit(weight.to(dtype), quant_type="nf4", compress_statistics=True)
        yield float((dequantize_4bit(packed, state).float() - weight).norm() / weight.norm())

found = [list(lost())]
mend(Linear4bit(1, 1))
print(json.dumps([*found, list(lost())]))
"""
)


@pytest.fixture(scope="module")
def lost():
    """Return what is lost of four weights, as a share of their norms: as upstream reads them, and mended."""
    finished = subprocess.run([sys.executable, "-c", WHOLE_AGAIN], capture_output=True, text=True, check=True)
    return json.loads(finished.stdout)


def test_rows_that_are_no_multiple_of_a_block_come_back_as_they_went(lost):
    assert all(0.05 < share < 0.1 for share in lost[1]), lost


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="upstream's fault is in AVX-512 code")
def test_upstream_still_needs_the_mend(lost):
    # Where this fails, bitsandbytes has mended its kernel, and `four_bit.mend` can lose its second half.
    assert lost[0][0] > 0.2 and lost[0][1] > 0.15 and max(lost[0][2:]) < 0.1, lost

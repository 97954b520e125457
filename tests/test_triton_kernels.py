"""Kernels in Triton, run by its interpreter on a CPU: ours, and TRL's as our loss head calls them."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with torch for GPUs; for a CPU it is an extra")

NF4 = """
import torch
from bitsandbytes.functional import dequantize_4bit
from hf_peft_recipes.speed import nf4
from test_nf4 import SHAPES, quantized

for shape in SHAPES:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight, state = quantized(shape, dtype)
        assert nf4.is_double_quantized(weight, state)
        out = nf4.dequantize_double(weight, state, torch.full(shape, torch.nan, dtype=dtype))
        expected = dequantize_4bit(weight, state)
        if dtype == torch.bfloat16:
            # The interpreter cuts bits off where a GPU rounds.
            state.dtype = torch.float32
            cut = dequantize_4bit(weight, state).view(torch.int32) >> 16 << 16
            expected = cut.view(torch.float32).to(dtype)
        assert torch.equal(out, expected), (shape, dtype)
    # Rounded as the state says, then brought into the dtype of the product.
    weight, state = quantized(shape, torch.float16)
    assert torch.equal(
        nf4.dequantize_double(weight, state, torch.empty(shape)), dequantize_4bit(weight, state).float()
    )
"""
HEAD = """
import torch
from trl.kernels import chunked_logprob
from hf_peft_recipes.speed import head_scores

chunked_logprob._use_triton = lambda device: True
head_scores.head_tokens = lambda *_: 16
draw = torch.Generator().manual_seed(0)
hidden, weight = (torch.randn(shape, generator=draw) for shape in ((37, 24), (2500, 24)))
targets = torch.randint(2500, (37,), generator=draw)

def outcome(scores):
    given = hidden.clone().requires_grad_()
    found = scores.apply(given, weight, targets)
    (found[0] * torch.linspace(0.5, 2, 37)).sum().backward()
    return [*found, given.grad]

for mine, expected in zip(outcome(head_scores.TileScores), outcome(head_scores.TokenScores), strict=True):
    torch.testing.assert_close(mine, expected, atol=2e-5, rtol=1e-5)
"""


@pytest.mark.parametrize("code", [NF4, HEAD], ids=["a weight in four bits", "the loss head"])
def test_a_kernel_does_what_torch_does(code):
    # Whether a kernel is interpreted is settled when it is read.
    variables = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]

"""Weights in four bits made whole: as bitsandbytes makes them, in one room, and by one kernel."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from hf_peft_recipes.speed import nf4

SHAPES = [(64, 64), (130, 30), (7, 10), (96, 576)]


def quantized(shape=(64, 64), dtype=torch.bfloat16, nested=True, kind="nf4"):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(nf4, "_buffers", {})
    monkeypatch.setattr(nf4, "_trusted", {})


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_cpu_bitsandbytes_makes_it(nested, dtype):
    weight, state = quantized(nested=nested)
    assert torch.equal(nf4.dequantize(weight, state, dtype), dequantize_4bit(weight, state).to(dtype))
    assert not nf4._buffers


def test_the_kernel_is_for_double_quantised_nf4():
    assert nf4.is_double_quantized(*quantized())
    assert not nf4.is_double_quantized(*quantized(nested=False))
    assert not nf4.is_double_quantized(*quantized(kind="fp4"))
    weight, state = quantized()
    assert not nf4.is_double_quantized(weight.flatten().view(torch.bfloat16), state)


def test_one_room_serves_every_weight_and_grows():
    device = torch.device("cpu")
    small = nf4.buffer(device, torch.Size((4, 6)), torch.float32)
    assert small.shape == (4, 6) and small.dtype == torch.float32 and small.is_contiguous()
    other = nf4.buffer(device, torch.Size((6, 8)), torch.bfloat16)
    assert other.data_ptr() == small.data_ptr() and other.dtype == torch.bfloat16
    large = nf4.buffer(device, torch.Size((4, 7)), torch.float32)
    (room,) = nf4._buffers.values()
    assert len(room) == 4 * 7 * 4 and room.data_ptr() == large.data_ptr()
    assert nf4.buffer(device, torch.Size((4, 6)), torch.float32).data_ptr() == large.data_ptr()


class OnGpu:
    """A weight that says that it is on a GPU."""

    device = torch.device("cuda", 0)


@pytest.mark.parametrize("kernel", ["right", "a bit off", "raises"])
def test_the_kernel_is_trusted_once_it_has_made_a_weight_as_bitsandbytes_does(kernel, monkeypatch, caplog):
    made = []

    def ours(weight, state, out):
        made.append(weight)
        if kernel == "raises":
            raise RuntimeError("no compiler")
        out.copy_(dequantize_4bit(weight, state))
        return out if kernel == "right" else out.mul_(1 + 2**-7)

    monkeypatch.setattr(nf4, "dequantize_double", ours)
    weight, state = quantized()
    found = [nf4.is_trusted(weight, state, torch.bfloat16) for _ in range(3)]
    assert found == [kernel == "right"] * 3 and len(made) == 1
    assert [record.levelname for record in caplog.records] == ([] if kernel == "right" else ["WARNING"])
    assert ("no compiler" in caplog.text) == (kernel == "raises")
    # Another precision is another kernel.
    nf4.is_trusted(weight, state, torch.float32)
    assert len(made) == 2


@pytest.mark.parametrize("why", ["ours", "no Triton", "not nested", "not trusted"])
def test_on_a_gpu_it_is_ours_where_it_can_be(why, monkeypatch):
    asked = []
    monkeypatch.setattr(nf4, "buffer", lambda device, shape, dtype: torch.empty(shape, dtype=dtype))
    monkeypatch.setattr(nf4, "has_kernel", lambda: why != "no Triton")
    monkeypatch.setattr(nf4, "is_double_quantized", lambda weight, state: why != "not nested")
    monkeypatch.setattr(nf4, "is_trusted", lambda weight, state, dtype: why != "not trusted")
    monkeypatch.setattr(nf4, "dequantize_double", lambda weight, state, out: asked.append("ours") or out)

    def theirs(weight, state, out):
        asked.append("bitsandbytes")
        assert out.dtype == state.dtype
        return out

    monkeypatch.setattr("bitsandbytes.functional.dequantize_4bit", theirs)
    _, state = quantized((6, 10))
    out = nf4.dequantize(OnGpu(), state, torch.float32)
    assert asked == ["ours" if why == "ours" else "bitsandbytes"]
    assert out.shape == (6, 10) and out.dtype == torch.float32

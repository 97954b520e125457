"""Whether the faster paths compute on this device what the model computes without them."""

from __future__ import annotations

import copy
from typing import Any

SHARES = (0.5, 0.02, 0.3, 0.18)
"""Of a row, of each of its documents."""
NO_FURTHER = 1.2
"""How much further from float32 than the unpatched model a path may be, by rounding at other places."""

Finding = dict[str, Any]


def check_paths(model: str, length: int, quantized: bool) -> list[Finding]:
    """Return findings on losses and gradients of a packed row, with our paths and without, each against float32.

    Args:
        model: folder of a base in bfloat16.
        length: tokens of the row.
        quantized: load it in NF4.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl.trainer.utils import add_fused_lm_head

    from benchmarks.gpu.worker import seed_adapter
    from hf_peft_recipes.speed import PATHS, speed_up

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ) if quantized else None  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, quantization_config=config, device_map={"": device}, attn_implementation="sdpa"
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    plain = get_peft_model(base, lora)
    seed_adapter(plain)
    for value in plain.parameters():
        if value.requires_grad:
            value.data = value.data.float()
    plain.train()
    fast = copy.deepcopy(plain)
    for one in (plain, fast):
        add_fused_lm_head(one.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    taken = speed_up(fast, device).paths
    row = _row(length, base.config.vocab_size, device)
    found = [_outcome(one, row, torch.bfloat16) for one in (plain, fast)]
    findings: list[Finding] = [
        {"name": "paths taken", "expected": list(PATHS), "found": taken, "ok": taken == list(PATHS)},
    ]  # fmt: skip
    if quantized:
        findings.append(_weights(plain))
        # There is no float32 of it: the two are held against each other.
        (loss, gradients), (other, others) = found
        for name, apart in (("loss", abs(other / loss - 1)), ("gradients", _off(others, gradients))):
            findings.append({"name": f"{name} beside PEFT's", "expected": 0.0, "found": apart, "ok": apart < 0.05})
        return findings
    truth_loss, truth = _outcome(plain.float(), row, None)
    losses = [abs(loss / truth_loss - 1) for loss, _ in found]
    offs = [_off(gradients, truth) for _, gradients in found]
    for name, (without, with_paths) in (("loss", losses), ("gradients", offs)):
        ok = with_paths <= NO_FURTHER * without + 1e-3
        findings.append({"name": f"{name} off float32", "expected": without, "found": with_paths, "ok": ok})
    return findings


def _row(length: int, vocabulary: int, device: str) -> dict[str, Any]:
    import torch

    lengths = [max(1, int(share * length)) for share in SHARES]
    positions = torch.cat([torch.arange(one, device=device) for one in lengths])[None]
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, positions.shape, generator=draw).to(device)
    # The first token of a document is nobody's to predict, and some others carry no loss.
    labels = tokens.masked_fill((positions == 0) | (tokens % 4 == 0), -100)
    return {"input_ids": tokens, "position_ids": positions, "labels": labels, "use_cache": False}


def _outcome(model: Any, row: dict[str, Any], autocast: Any) -> tuple[float, dict[str, Any]]:
    import torch

    model.zero_grad()
    with torch.autocast(row["labels"].device.type, autocast, enabled=autocast is not None):
        loss = model(**row, fused_lm_head=True).loss
    loss.backward()
    gradients = {name: one.grad.float().clone() for name, one in model.named_parameters() if one.grad is not None}
    return float(loss), gradients


def _off(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the norm of the difference of two sets of gradients, over that of the expected one."""
    missed = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (missed / sum(float(one.square().sum()) for one in expected.values())) ** 0.5


def _weights(model: Any) -> Finding:
    """Return whether weights in 4 bits are made whole as bitsandbytes makes them, to the bit."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    from hf_peft_recipes.speed.nf4 import dequantize

    equal = all(
        torch.equal(
            dequantize(one, one.quant_state, torch.bfloat16), dequantize_4bit(one.data, one.quant_state).bfloat16()
        )
        for one in model.parameters()
        if hasattr(one, "quant_state")
    )
    return {"name": "weights made whole", "expected": True, "found": equal, "ok": equal}

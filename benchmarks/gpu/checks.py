"""What must hold before anything is measured: loading in 4 bits, the memory of a bare PEFT step, our faster paths.

Each check runs in a process of its own and returns findings: what was expected, what was found, whether that is near.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu.paths import check_paths

NF4_BYTES = 0.51587
"""Of a weight in NF4 with double quantisation: half a byte, and a byte a block of 64, and 4 a block of 256 of those."""
LOGIT_BYTES = 12
"""Of each of V × T logits, while a cross-entropy in float32 is held whole and nobody keeps the bfloat16 ones: 4 for
their logarithms, 4 for the gradient of those, 4 for that of the logits. Who keeps the logits pays 2 more."""
TABLE_BYTES = 16 * 4 + 256 * 4 + 4
"""Of a matrix in NF4, whatever its size: the tables of its values and of its maxima, and an offset."""
ADAM_BYTES = 8
NEAR, ROUGH = 0.01, 0.15
ROUNDING = 0.1
"""The share of a normally distributed weight that NF4 loses: Dettmers et al. 2023 have no figure; measured 0.09."""

Finding = dict[str, Any]


def check_nf4(model: str, quantized: str) -> list[Finding]:
    """Return findings on a base that is quantised while it loads, and on one that lies in NF4 on the disk.

    Args:
        model: folder of a base in bfloat16.
        quantized: folder of the same base in NF4.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM

    from hf_peft_recipes.api import get_recipe
    from hf_peft_recipes.models import load_base
    from hf_peft_recipes.plan.shapes import four_bit_bytes

    # On a base in NF4 the files decide, whatever is asked for; these say bfloat16.
    recipe = get_recipe("qlora", model=model, dtype="bfloat16", bnb_4bit_compute_dtype="bfloat16").resolved
    section, quantization = recipe.section("model"), recipe.section("quantization")
    loaded = load_base(AutoModelForCausalLM, section, quantization)
    weights = {name: value for name, value in loaded.named_parameters() if hasattr(value, "quant_state")}
    linear = {
        f"{name}.weight"
        for name, module in loaded.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("lm_head")
    }
    sizes = [value.quant_state.shape.numel() for value in weights.values()]
    held = sum(size for value in weights.values() for size in _sizes(value))
    whole = load_base(AutoModelForCausalLM, section, None).to(loaded.device)
    lost = 0.0
    for name, value in weights.items():
        original = whole.get_parameter(name).data.float()
        missed = dequantize_4bit(value.data, value.quant_state).float() - original
        lost = max(lost, float(missed.norm() / original.norm()))
    del whole
    other = load_base(AutoModelForCausalLM, {**(section or {}), "name_or_path": quantized}, quantization)
    pairs = [(value, other.get_parameter(name)) for name, value in weights.items()]
    equal = all(torch.equal(mine, theirs) for pair in pairs for mine, theirs in zip(*map(_tensors, pair), strict=True))
    tokens = torch.arange(32, device=loaded.device)[None]
    with torch.no_grad():
        apart = float((loaded(input_ids=tokens).logits - other(input_ids=tokens).logits).abs().max())
    return [
        _found("linear layers in 4 bits", len(linear), len(linear & weights.keys()), 0),
        _found("bytes of the weights", sum(four_bit_bytes(size, True) for size in sizes), held, NEAR),
        _found("bytes of one of many", NF4_BYTES, (held - len(sizes) * TABLE_BYTES) / sum(sizes), NEAR),
        {"name": "share of the weights that is lost", "expected": ROUNDING, "found": lost, "ok": 0 < lost < ROUNDING},
        {"name": "files in NF4 are what loading makes", "expected": True, "found": equal, "ok": equal},
        _found("difference of their logits", 0.0, apart, 0),
    ]  # fmt: skip


def check_bare_step(model: str, length: int, quantized: bool) -> list[Finding]:
    """Return findings on a step of plain PEFT with a whole cross-entropy, nothing of ours in it.

    Args:
        model: folder of a base in bfloat16.
        length: tokens of the one row.
        quantized: load it in NF4.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ) if quantized else None  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, quantization_config=config, device_map={"": device}
    )
    elements = [
        (value.quant_state.shape.numel() if hasattr(value, "quant_state") else value.numel(), value)
        for value in base.parameters()
    ]
    expected = sum(
        number * NF4_BYTES + TABLE_BYTES if hasattr(value, "quant_state") else 2 * number for number, value in elements
    )
    held = sum(size for _, value in elements for size in _sizes(value))
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(base, lora)
    trained = [value for value in wrapped.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.randint(0, base.config.vocab_size, (1, length), device=device)
    head, hidden = base.get_output_embeddings(), torch.randn(length, base.config.hidden_size, device=device)
    vocabulary = base.config.vocab_size
    hidden = hidden.to(torch.bfloat16).requires_grad_()

    def loss_alone() -> None:
        torch.nn.functional.cross_entropy(head(hidden).float(), ids[0]).backward()

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    # The second time: cuBLAS has its workspace by then, and the optimizer its states.
    there = [*wrapped.parameters(), *wrapped.buffers()]
    peaks = [peak_bytes(loss_alone, there) for _ in range(2)]
    steps = [peak_bytes(step, there) for _ in range(2)]
    states = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.dim())
    return [
        _found("bytes of the base", expected, held, NEAR),
        _found("bytes of Adam's states", ADAM_BYTES * sum(value.numel() for value in trained), states, 0),
        _found("bytes of the loss, held whole", LOGIT_BYTES * vocabulary * length, peaks[-1], ROUGH),
        {
            "name": "bytes of a step beyond what was held before", "found": steps[-1],
            "expected": None, "ok": steps[-1] > peaks[-1],
        },
    ]  # fmt: skip


CHECKS: dict[str, Callable[..., list[Finding]]] = {
    "nf4": check_nf4, "bare_step": check_bare_step, "paths": check_paths,
}  # fmt: skip
"""Check to its function."""


def peak_bytes(work: Callable[[], None], there: Sequence[Any]) -> int:
    """Return the most bytes of tensors that lived at once beyond those that were there before.

    Args:
        work: that makes them.
        there: tensors that were.
    """
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated()) - before
    from hf_peft_recipes.plan.live import LiveBytes

    with LiveBytes() as live:
        live.hold(there)
        before = live.live_bytes
        work()
    return live.peak_bytes - before


def _tensors(value: Any) -> list[Any]:
    """Return all that a weight in 4 bits consists of."""
    state = value.quant_state
    return [value.data, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]


def _sizes(value: Any) -> list[int]:
    """Return the bytes of all that a weight consists of."""
    return [tensor.nbytes for tensor in (_tensors(value) if hasattr(value, "quant_state") else [value])]


def _found(name: str, expected: float, found: float, within: float) -> Finding:
    ok = abs(found - expected) <= within * abs(expected)
    return {"name": name, "expected": expected, "found": found, "within": within, "ok": ok}

"""A gated feed-forward block with LoRA as one function of autograd: `down(silu(gate(x))·up(x))`.

Upstream keeps four tensors of the block's inner width for the way back: what gate and up gave, silu of the first, and
the product, which `down` keeps. Here it is the first two; the others are made anew, element by element, which costs
little beside the products (SwiGLU: Shazeer 2020, arXiv:2002.05202). Where `recompute` asks for it, none is kept.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from hf_peft_recipes.speed import Taken, sort_out
from hf_peft_recipes.speed.lora_layers import as_base, has_lora, projections_of, why_not_all_plain
from hf_peft_recipes.speed.lora_products import Ways, back, by_input, flat, forth, ways_of
from hf_peft_recipes.speed.modules import is_hooked, is_replaced, is_written

_CODE = ("self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))",)
"""What all blocks that are meant here do, in transformers' words: Llama's, Mistral's, Qwen's, SmolLM3's."""
_PARTS = ("gate_proj", "up_proj", "down_proj")


class GatedMlp(torch.autograd.Function):
    """One block."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ways: Ways, recomputes: bool, *adapters: torch.Tensor) -> torch.Tensor:
        """Return the output, of the input's shape.

        Args:
            ctx: what backward finds again.
            x: of shape (…, hidden size).
            ways: the frozen parts of gate, up and down.
            recomputes: whether nothing of the inner width is kept: gate's and up's products are made once more then.
            adapters: A and B of each.
        """
        rows = flat(x, ways[0].dtype)
        (gate, up), inner = forth(ways[:2], rows, rows, adapters[:4])
        product = silu(gate).mul_(up)
        (out,), down_inner = forth(ways[2:], product, product, adapters[4:])
        kept = () if recomputes else (gate, up, inner)
        ctx.save_for_backward(rows, down_inner, *adapters, *kept)
        ctx.ways, ctx.x = ways, (x.shape, x.dtype)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients by the input and by the A and B of each part."""
        first, last = ctx.ways[:2], ctx.ways[2:]
        rows, down_inner, *others = ctx.saved_tensors
        of_first, of_last, kept = others[:4], others[4:6], others[6:]
        if kept:
            gate, up, inner = kept
        else:
            (gate, up), inner = forth(first, rows, rows, of_first)
        g = flat(gradient, last[0].dtype)
        activated = silu(gate)
        product = activated * up
        by_last, by_inner = back(last, [g], product, down_inner, of_last)
        del product
        by_product = by_input(last, [g], by_inner, of_last)
        by_up = torch.mul(by_product, activated, out=activated)
        by_gate = torch.ops.aten.silu_backward(by_product.mul_(up), gate)
        del by_product
        by_first, by_inner = back(first, [by_gate, by_up], rows, inner, of_first)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = by_input(first, [by_gate, by_up], by_inner, of_first).view(ctx.x[0]).to(ctx.x[1])
        return by_x, None, None, *by_first, *by_last


def install(model: Any) -> Taken:
    """Let each gated block, all of whose layers are plain LoRA layers, be one function."""
    blocks = {module: _why_not(module) for module in model.modules() if has_lora(module, _PARTS)}
    for block, reason in blocks.items():
        if reason is None:
            block.forward = MethodType(_forward, block)
    return sort_out(blocks.values())


def _forward(block: Any, x: torch.Tensor) -> Any:
    out = as_one(block, x)
    return type(block).forward(block, x) if out is None else out


def as_one(block: Any, x: torch.Tensor, recomputes: bool = False) -> torch.Tensor | None:
    """Return the output of a block as one function; None where its layers are to be computed each alone now.

    Args:
        block: one that `serves` is true of.
        x: its input, of shape (…, hidden size).
        recomputes: as `GatedMlp.forward` has it.
    """
    parts = None if is_hooked(block.act_fn) else projections_of([getattr(block, name) for name in _PARTS], x)
    if parts is None:
        return None
    out = GatedMlp.apply(x, ways_of(parts, x), recomputes, *(tensor for part in parts for tensor in (part.a, part.b)))
    return as_base(out, parts[-1].base, x)


def serves(block: Any) -> bool:
    """Return whether `install` has made one function of the block."""
    return getattr(vars(block).get("forward"), "__func__", None) is _forward


def _why_not(block: Any) -> str | None:
    if reason := why_not_all_plain(block, _PARTS):
        return reason
    if is_replaced(block):
        return "another's function stands in the block's place"
    if hasattr(block, "_hf_hook"):
        return "accelerate fetches the weights"
    activation = getattr(block, "act_fn", None)
    is_silu = isinstance(activation, torch.nn.SiLU) or type(activation).__name__ == "SiLUActivation"
    if not is_silu or not is_written(type(block).forward, _CODE):
        return f"{type(block).__name__} is no gated SiLU block"
    return None

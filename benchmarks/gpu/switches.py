"""Our faster paths, each of which can be switched off in a process that trains: what an ablation leaves out."""

from __future__ import annotations

from collections.abc import Callable


def _leave_out(*paths: str) -> Callable[[], None]:
    def switch() -> None:
        from hf_peft_recipes.speed import PATHS

        for path in paths:
            del PATHS[path]

    return switch


def _leave_out_all() -> None:
    from hf_peft_recipes.speed import PATHS

    PATHS.clear()


def _leave_out_varlen() -> None:
    from hf_peft_recipes.speed import ATTENTION

    ATTENTION.clear()


def _leave_out_kernel() -> None:
    from hf_peft_recipes.speed import nf4

    nf4.has_kernel = lambda: False  # type: ignore[assignment]


SWITCHES: dict[str, Callable[[], None]] = {
    "speed_off": _leave_out_all,
    "no_document_attention": _leave_out("document_attention"),
    "no_varlen": _leave_out_varlen,
    "no_loss_head": _leave_out("loss_head"),
    "no_lora_linear": _leave_out("lora_linear", "gated_mlp", "qkv"),
    "no_gated_mlp": _leave_out("gated_mlp"),
    "no_rms_norm": _leave_out("rms_norm"),
    "no_rotary": _leave_out("rotary"),
    "no_qkv": _leave_out("qkv"),
    "no_nf4_kernel": _leave_out_kernel,
}
"""Contender to what makes ours into it, before anything is built.

Without `lora_linear` go the blocks too, and queries, keys and values as one, which are made of such layers; `no_varlen`
attends by SDPA a document at a time still, and `no_nf4_kernel` makes weights whole by bitsandbytes' passes.
"""

"""The step that would run, run on the meta device: transformers' layers, PEFT's adapters, TRL's loss, without memory.

What the meta device lacks stands here in its place: autocast, the attention kernels, weights in 4 bits, and the choice
of tokens with loss, which depends on what the data are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from itertools import filterfalse
from typing import Any
from unittest import mock

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from trl.kernels import chunked_logprob

from hf_peft_recipes.adapters import add_adapter
from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.float8 import is_float8
from hf_peft_recipes.methods import settings
from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.live import LiveBytes
from hf_peft_recipes.plan.loss import TILE_WIDTH
from hf_peft_recipes.plan.optimizers import optimizer_bytes
from hf_peft_recipes.plan.quantized import DTYPES, quantization_tensors, quantize_layers
from hf_peft_recipes.speed import PATHS, head_scores, lora_products, nf4, recompute
from hf_peft_recipes.speed.attention.by_block import attend_by_block
from hf_peft_recipes.speed.attention.layout import Layout, lay_out
from hf_peft_recipes.speed.head_scores import SCORES
from hf_peft_recipes.speed.token_scores import TokenScores

_ATTENTION = "sizes_of_a_kernel"


@dataclass(frozen=True)
class Traced:
    """What the traced step took on one device that holds the whole model."""

    peak_bytes: int
    weight_bytes: int
    saved_bytes: int
    """What is held beyond weights, gradients and optimizer when the way back begins."""
    optimizer_bytes: int
    parameters: int
    trainable: int
    flops: int
    """Multiplications and additions of all matrix products that were run, the way back included."""


def trace_step(job: Job) -> Traced:
    """Return what one training step takes: of the real code, on the meta device.

    Raises:
        UserError: transformers has no such architecture, or the model cannot be built from its config.
    """
    model = build(job)
    live = LiveBytes()
    live.hold([*filterfalse(is_float8, model.parameters()), *model.buffers()])
    live.hold(quantization_tensors(model))
    weights = live.live_bytes
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states = optimizer_bytes(job.optimizer, [parameter.numel() for parameter in trained], trained[0].element_size())
    if job.accumulation > 1:
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        live.hold([parameter.grad for parameter in trained])
    with _stand_ins(job), live:
        before = live.live_bytes
        with _Autocast(job):
            loss = _loss(job, model)
        saved = live.live_bytes - before
        loss.backward()
    total = sum(_elements(parameter) for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in trained)
    return Traced(live.peak_bytes + states, weights, saved, states, total, trainable, live.flops)


def build(job: Job) -> Any:
    """Return the model on the meta device, quantised and with its adapter, ready for a step.

    Raises:
        UserError: as `trace_step` raises it.
    """
    # What is quantised is put in its place here, without weights.
    config_values = {key: value for key, value in job.config.items() if key != "quantization_config"}
    kind = str(config_values.pop("model_type", None))
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"model {job.source!r}: unknown architecture {kind!r}{did_you_mean(kind, list(CONFIG_MAPPING))}"
        )
    try:
        config = CONFIG_MAPPING[kind].from_dict(config_values)
        AttentionInterface.register(_ATTENTION, _attention(job))
        AttentionMaskInterface.register(_ATTENTION, lambda *_, **__: None)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[job.item_bytes], attn_implementation=_ATTENTION
            )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"model {job.source!r} cannot be traced: {str(error).splitlines()[0]}") from None
    if job.bits:
        quantize_layers(model, job)
    if job.adapter:
        model = add_adapter(model, settings(job.adapter), "CAUSAL_LM")
    model.train()
    taken = {
        "lora_linear": job.own_lora, "gated_mlp": job.own_lora, "qkv": job.own_qkv,
        "rms_norm": job.own_layers, "rotary": job.own_layers,
    }  # fmt: skip
    for name, path in PATHS.items():
        if taken.get(name):
            import_module(path.module).install(model)

    def contexts() -> tuple[Any, Any]:
        # What is made anew on the way back is made under autocast again.
        return nullcontext(), _Autocast(job)

    if job.checkpointing:
        if job.adapter:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    elif job.recompute:
        recompute.install(model, job.recompute, contexts)
    return model


def _loss(job: Job, model: Any) -> torch.Tensor:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # The batch: ids and labels; packed rows are one long row.
    shape = (1, job.tokens) if job.packed else (job.batch, job.length)
    ids, labels = (torch.empty(shape, dtype=torch.long, device="meta") for _ in range(2))
    # A mask of four dimensions is taken as it is: otherwise transformers looks for documents, which meta has not.
    side = job.attended if job.needs_mask else 1
    mask = torch.empty((1, 1, side, side), dtype=torch.bool, device="meta")
    hidden = base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    head = base.get_output_embeddings()
    hidden = hidden.reshape(1, job.tokens, -1)
    if job.own_head or job.device.kind == "cuda":
        number = max(1, int(job.tokens * job.supervised))
        index = torch.empty(number, dtype=torch.long, device="meta")
        rows, targets = hidden[0].index_select(0, index), labels.reshape(-1)[:number]
    else:
        # TRL drops the last position of a row; its copy of the rest is as large as all rows to within one.
        rows, targets = hidden.clone()[0], labels.reshape(-1)
    if job.own_head:
        scores = SCORES.get(job.device.kind, TokenScores)
        return scores.apply(rows, head.weight, targets)[0].sum()
    # A host holds what is written to of a tile that is wider than the vocabulary.
    width = min(TILE_WIDTH, head.weight.shape[0]) if job.on_cpu else TILE_WIDTH
    scores = chunked_logprob.ChunkedLogProbFunction.apply(
        rows, head.weight, head.bias, targets, 1.0, width,
        getattr(base.config.get_text_config(), "final_logit_softcapping", None), 1.0,
        ("log_probs", "entropy", "is_top1"),
    )  # fmt: skip
    return scores[0].sum()


def _attention(job: Job) -> Any:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    @functools.cache
    def layout(heads: int, key_heads: int, tokens: int) -> Layout:
        # Of a long document and a short one: one alone would be left as it is.
        laid = lay_out([tokens - 1, 1], torch.device("cpu"))
        laid.places(heads, key_heads)
        return laid.to("meta")

    dtype = DTYPES[job.compute_bytes]

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **options: Any) -> Any:
        query, key, value = (x.to(dtype) for x in (query, key, value))
        if job.document_kernel == "by_block":
            rows, heads, key_heads = len(query), query.shape[1], key.shape[1]
            query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
            laid = layout(heads, key_heads, len(query))
            return attend_by_block(query, key, value, laid, None).unflatten(0, (rows, -1)), None
        places = torch.empty(query.shape[2], dtype=torch.long, device="meta")
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and (job.needs_mask or (job.copies_documents and not job.on_cpu)):
            key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        if job.copies_documents:
            query, key, value = (x.index_select(2, places) for x in (query, key, value))
        if job.needs_mask:
            side = query.shape[2]
            # Torch makes numbers of a boolean mask, for every layer anew.
            mask = torch.empty((1, 1, side, side), dtype=query.dtype, device="meta")
            out = kernel(query, key, value, 0.0, False, attn_mask=mask)[0]
        else:
            out = kernel(query, key, value, 0.0, True)[0]
        if job.copies_documents:
            return torch.cat([out.transpose(1, 2)], 1).index_select(1, places), None
        return out.transpose(1, 2), None

    return attend


class _Autocast(TorchFunctionMode):
    """What autocast does to linear layers and products: casts of what is float32, those of trained weights kept."""

    _PRODUCTS = (functional.linear, torch.matmul, torch.bmm, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__)

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._dtype = DTYPES[job.autocast_bytes] if job.autocast_bytes else None
        self._kind = job.device.kind
        self._kept: dict[int, torch.Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if self._dtype is not None:
            if function in self._PRODUCTS:
                arguments = tuple(self._lowered(argument) for argument in arguments)
                keywords = {name: self._lowered(argument) for name, argument in keywords.items()}
            elif function is functional.layer_norm and self._kind == "cuda":
                arguments = tuple(_raised(argument) for argument in arguments)
                keywords = {name: _raised(argument) for name, argument in keywords.items()}
        return function(*arguments, **keywords)

    def _lowered(self, argument: Any) -> Any:
        if not isinstance(argument, torch.Tensor) or argument.dtype != torch.float32:
            return argument
        if not (argument.requires_grad and argument.is_leaf):
            return argument.to(self._dtype)
        if id(argument) not in self._kept:
            self._kept[id(argument)] = argument.to(self._dtype)
        return self._kept[id(argument)]


def _raised(argument: Any) -> Any:
    low = isinstance(argument, torch.Tensor) and argument.dtype in (torch.bfloat16, torch.float16)
    return argument.float() if low else argument


@contextmanager
def _stand_ins(job: Job) -> Iterator[None]:
    """Let the code under trace see the device that is planned for."""
    from transformers.integrations import moe

    autocast = job.autocast_bytes is not None
    cuda = job.device.kind == "cuda"

    def is_enabled(device_type: str | None = None) -> bool:
        # Without a device torch means the GPU.
        return autocast and (cuda or device_type is not None)

    silent = type("Kernel", (), {"__getitem__": lambda self, grid: lambda *_, **__: None})()
    patches: list[Any] = [
        mock.patch.object(torch, "is_autocast_enabled", is_enabled),
        mock.patch.object(torch, "get_autocast_dtype", lambda _: torch.bfloat16),
        mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
        mock.patch.object(recompute, "save_on_cpu", _elsewhere if cuda else lambda **_: nullcontext()),
    ]
    if job.item_bytes == 4:
        # Torch knows the sizes of grouped products in bfloat16 only.
        patches.append(mock.patch.object(moe, "_can_use_grouped_mm", lambda *_: False))
    if cuda:
        # Torch's own kernel for GPUs keeps a mask of bytes; the meta device would take the CPU's way.
        patches.append(mock.patch.object(functional, "dropout", _dropout))
        # Triton works in place on a tile.
        patches += [
            mock.patch.object(chunked_logprob, "_use_triton", lambda _: True),
            mock.patch.object(chunked_logprob, "_forward_kernel", silent, create=True),
            mock.patch.object(chunked_logprob, "_backward_kernel", silent, create=True),
            mock.patch.object(chunked_logprob, "triton", mock.MagicMock(), create=True),
            mock.patch.object(chunked_logprob, "_addmm_fp32", lambda total, a, b: None),
            mock.patch.object(head_scores, "_product", _precise_product),
            mock.patch.object(nf4, "_buffers", {}),
            mock.patch.object(lora_products, "dequantize", _into_the_buffer),
        ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _elsewhere(**_: Any) -> Any:
    """Let what is saved be nothing, and made anew when it is asked for: it was in the host's memory."""
    return saved_tensors_hooks(
        lambda tensor: (tensor.shape, tensor.dtype), lambda told: torch.empty(told[0], dtype=told[1], device="meta")
    )


def _precise_product(tile: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return tile.new_empty(len(tile), weight.shape[1], dtype=torch.float32)


def _into_the_buffer(weight: Any, state: Any, dtype: torch.dtype) -> torch.Tensor:
    return nf4.buffer(weight.device, state.shape, dtype)


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p else x


def _elements(parameter: Any) -> int:
    return int(parameter.numel() * (2 if parameter.__class__.__name__ == "Params4bit" else 1))

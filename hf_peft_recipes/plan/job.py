"""What is planned: a recipe for a device, brought down to the numbers that decide memory and time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_peft_recipes.device import Device
from hf_peft_recipes.plan.held_out import HeldOut
from hf_peft_recipes.plan.shapes import ARCHITECTURES, Shape, Tensor, four_bit_bytes
from hf_peft_recipes.plan.sizes import FLOAT32
from hf_peft_recipes.spec.recompute import NOTHING, Recompute
from hf_peft_recipes.speed import attention_kernel, serves

# It looks at data, and brings along what reads them.
if TYPE_CHECKING:
    pass

ITEM_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "float64": 8}
"""Name of a torch dtype to the bytes of an element."""

NOT_WALKED = (
    "trainable_token_indices", "target_parameters", "rank_pattern", "exclude_modules",
    "layers_to_transform", "layer_replication", "lora_bias", "bias",
)  # fmt: skip
"""What of LoRA's options changes sizes and has no closed form."""

SHARDINGS = ("none", "ddp", "fsdp", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Job:
    """One training run in numbers."""

    source: str
    """Path or Hub id of the base."""
    config: Mapping[str, Any]
    item_bytes: int
    """Of a weight of the base that is not quantised."""
    stored_item_bytes: int
    """Of a weight in the base's files."""
    autocast_bytes: int | None
    bits: int
    """4 or 8 where the base is quantised, else 0."""
    float8: bool
    """Whether 8 bits are torchao's floats, and not whole numbers of bitsandbytes."""
    double_quantized: bool
    adapter: Mapping[str, Any] | None
    length: int
    batch: int
    """Rows of a micro-batch, on one device."""
    accumulation: int
    checkpointing: bool
    """Whether upstream computes every block again, `training.activation_checkpointing`."""
    optimizer: str
    packed: bool
    supervised: float
    """Share of the tokens that carry loss."""
    device: Device
    speed: bool
    """Whether the faster paths are taken."""
    devices: int
    sharding: str
    attention: str | None
    """The attention implementation that was asked for."""
    evaluation: Mapping[str, Any]
    arguments: Mapping[str, Any]
    """The recipe's training section."""
    document_lengths: int
    """How many different lengths packed documents have."""
    span: float | None = None
    """Tokens of the document that a token stands in, on average; None where rows are taken to be full."""
    held_out: HeldOut | None = None
    """What evaluation meets, where the data were looked at."""
    prequantized: bool = False
    """Whether the files are quantised already, so that loading makes nothing whole."""
    extra_elements: int = 0
    """Numbers in the files that the config does not tell of; below 0 where it tells of more."""
    weight_bytes: int | None = None
    """What the base takes, where the files know it and the config does not."""
    quantized_elements: int = 0
    """Numbers that a quantised base holds in 4 or 8 bits."""
    four_bit_bytes: int = FLOAT32
    """Of the numbers that weights in 4 bits are multiplied in without autocast: bitsandbytes' compute dtype."""
    recompute: Recompute = NOTHING
    """Which layers are computed again, where upstream does not do so with all of them."""

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch, on one device."""
        return self.batch * self.length

    @property
    def compute_bytes(self) -> int:
        """Bytes of the numbers that are multiplied."""
        return self.autocast_bytes or self.item_bytes

    @property
    def layer_bytes(self) -> int:
        """Bytes of the numbers that the layers' weights are multiplied in."""
        return self.autocast_bytes or (self.four_bit_bytes if self.bits == 4 else self.item_bytes)

    @property
    def on_cpu(self) -> bool:
        """Whether training runs in host memory."""
        return self.device.kind == "cpu"

    @property
    def flash(self) -> bool:
        """Whether packed documents are told apart without a mask: transformers takes SDPA unless told otherwise."""
        return "flash" in str(self.attention)

    @property
    def by_document(self) -> bool:
        """Whether the faster path attends a document at a time."""
        return self.takes("document_attention") and self.attention in (None, "sdpa")

    @property
    def needs_mask(self) -> bool:
        """Whether packed documents are told apart by a dense mask."""
        return self.packed and not self.flash and not self.by_document

    @property
    def document_kernel(self) -> str:
        """What attends to packed documents on the faster path; empty where that is not taken."""
        if not self.by_document:
            return ""
        # Flash attention needs the GPUs that have products in bfloat16.
        flash = self.on_cpu or self.device.bf16
        return attention_kernel(self.device.kind, self.compute_bytes) if flash else "by_document"

    @property
    def copies_documents(self) -> bool:
        """Whether documents are put beside one another for SDPA, where no kernel takes a row as it is."""
        return self.document_kernel == "by_document"

    def takes(self, path: str) -> bool:
        """Return whether one of the faster paths is there, for the device and whole weights."""
        whole = self.sharding in ("none", "ddp")
        return self.speed and whole and serves(path, self.device.kind, bool(self.arguments.get("torch_compile")))

    @property
    def own_head(self) -> bool:
        """Whether our loss head serves: a frozen head whose logits are not changed."""
        plain = self.config.get("final_logit_softcapping") is None and not self.config.get("output_router_logits")
        frozen = self.adapter is not None and "lm_head" not in (self.adapter.get("modules_to_save") or ())
        return self.takes("loss_head") and frozen and plain and self.config["model_type"] != "phi"

    @property
    def own_lora(self) -> bool:
        """Whether plain LoRA layers are functions of our own: not those of a frozen base in whole numbers of 8 bits.

        Without autocast they are where products with the base are as precise as the adapter. What is float16 is left to
        PEFT.
        """
        adapter = self.adapter or {}
        plain = str(adapter.get("peft_type")).upper() == "LORA" and not adapter.get("use_dora")
        plain = plain and (self.bits != 8 or self.float8) and not self.arguments.get("fp16")
        return self.takes("lora_linear") and plain and (bool(self.autocast_bytes) or self.layer_bytes == FLOAT32)

    @property
    def own_layers(self) -> bool:
        """Whether norms with a frozen weight and rotary positions are functions of our own."""
        return self.takes("rms_norm") and self.takes("rotary")

    @property
    def layers(self) -> int:
        """Of the model."""
        return int(self.config.get("num_hidden_layers") or 0)

    @property
    def recomputes(self) -> bool:
        """Whether any layer is computed again."""
        return self.checkpointing or bool(self.recompute)

    @property
    def offloads(self) -> bool:
        """Whether what blocks keep is not in the device's memory: a CPU has no other than the host's."""
        return self.recompute.offloads and not self.on_cpu

    def keeping_all(self) -> Job:
        """Return the same run without anything that is computed again."""
        return replace(self, checkpointing=False, recompute=NOTHING)

    def stretches(self, layers: int) -> tuple[int, int, int]:
        """Return how many layers are computed again whole, how many in their feed-forward part, how many not at all.

        Args:
            layers: of the model.
        """
        blocks = layers if self.checkpointing else min(layers, self.recompute.blocks)
        feed_forwards = min(layers - blocks, self.recompute.feed_forwards)
        return blocks, feed_forwards, layers - blocks - feed_forwards

    def gates_as_one(self, shape: Shape, layer: int) -> bool:
        """Return whether gate, up and down of a layer are one function of our own, `speed/gated_mlp.py`."""
        plain = shape.traits.gated and not shape.traits.fused and not shape.has_experts(layer)
        if not (self.own_lora and plain and shape.activation == "silu") or (self.adapter or {}).get("lora_dropout"):
            return False
        sizes, name = shape.mlp_sizes(), f"model.layers.{layer}.mlp"
        return all(self.adapts(Tensor(f"{name}.{part}.weight", rows, inputs, True)) for part, rows, inputs in sizes)

    @property
    def own_qkv(self) -> bool:
        """Whether queries, keys and values are one function of our own, `speed/qkv.py`, where all three have LoRA."""
        return self.own_lora and self.takes("qkv") and not (self.adapter or {}).get("lora_dropout")

    @property
    def attended(self) -> int:
        """Tokens over which the dense mask spans: packed rows at once are one long row."""
        return self.tokens if self.packed else self.length

    @property
    def attention_span(self) -> float:
        """Tokens that a token's attention is computed over, on average: its document where no dense mask is needed."""
        return self.span if self.span is not None and (self.by_document or self.flash) else float(self.length)

    @property
    def tells_layers_apart(self) -> bool:
        """Whether the adapter may stand in some layers only: its modules are named with numbers."""
        wanted = (self.adapter or {}).get("target_modules") or ()
        return any(letter.isdigit() for name in ([wanted] if isinstance(wanted, str) else wanted) for letter in name)

    def quantized_bytes(self, tensor: Tensor) -> int:
        """Return what a weight takes in the base's 4 or 8 bits: in 8, a byte an element and a float32 a row."""
        if self.bits == 4:
            return four_bit_bytes(tensor.elements, self.double_quantized)
        return tensor.elements + 4 * tensor.rows

    def quantizes(self, tensor: Tensor) -> bool:
        """Return whether the base holds the tensor in 4 or 8 bits: every linear layer but the head."""
        return bool(self.bits) and tensor.linear

    def adapts(self, tensor: Tensor) -> bool:
        """Return whether LoRA stands beside the tensor.

        Raises:
            UserError: `target_modules` is not there.
        """
        if not self.adapter or not (tensor.linear or tensor.stacked):
            return False
        module, wanted = tensor.name.removesuffix(".weight"), self.adapter.get("target_modules")
        if wanted == "all-linear":
            return True
        if tensor.stacked:
            return False
        if isinstance(wanted, str):
            return re.fullmatch(wanted, module) is not None
        if wanted is None:
            # PEFT's own choice for these architectures, peft/utils/constants.py.
            wanted = ("q_proj", "v_proj", "qkv_proj")
        return any(module == name or module.endswith(f".{name}") for name in wanted)

    def closed_form_misses(self) -> str:
        """Return what of the job has no closed form, for an architecture that has one; empty when all has."""
        if self.adapter:
            kind = str(self.adapter.get("peft_type")).upper()
            if kind != "LORA":
                return f"peft_type {kind}"
            for name in NOT_WALKED:
                if self.adapter.get(name) not in (None, False, [], {}, "none"):
                    return name
            if (start := self.adapter.get("init_lora_weights")) in ("lora_ga", "corda"):
                return f"init_lora_weights {start}, of twice the rank"
            if others := set(self.adapter.get("modules_to_save") or ()) - {"lm_head", "embed_tokens"}:
                return f"modules_to_save {min(others)!r}"
            stacked = ARCHITECTURES[str(self.config["model_type"])].experts
            for name in ("use_dora", "lora_dropout"):
                if stacked and self.adapter.get(name):
                    return f"{name} on experts"
            if self.adapter.get("use_dora") and (self.bits or self.adapter.get("lora_dropout")):
                return "use_dora on a quantised base" if self.bits else "use_dora with lora_dropout"
        if self.bits == 8 and not self.float8 and self.item_bytes != 2:
            return "a base in 8 bits beside float32"
        if self.arguments.get("use_liger_kernel"):
            return "use_liger_kernel"
        return ""

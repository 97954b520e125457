"""From a config.json to the sizes of a model's weights: one table of architectures, no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_peft_recipes.errors import UserError


@dataclass(frozen=True)
class Traits:
    """In what an architecture differs from Llama."""

    norm: str = "rms"
    """`rms`, `gemma` (weighs in float32) or `layer`."""
    qkv_bias: bool = False
    bias: bool = False
    """On every linear layer, the head included."""
    qk_norm: bool = False
    fused: bool = False
    """Queries, keys and values are one linear layer, gate and up another."""
    gated: bool = True
    sandwich: bool = False
    """Norms after attention and MLP too."""
    parallel: bool = False
    """Attention and MLP read the same normed input."""
    partial_rotary: bool = False
    experts: bool = False
    scaled_embedding: bool = False
    output_projection: str = "o_proj"
    local_layers: bool = False
    """Some layers attend to a window, with a rotary embedding of their own."""
    defaults: Mapping[str, Any] | None = None
    """What a config.json that does not say it means."""


ARCHITECTURES = {
    "llama": Traits(),
    "mistral": Traits(),
    "qwen2": Traits(qkv_bias=True),
    "qwen3": Traits(qk_norm=True, defaults={"head_dim": 128}),
    "gemma": Traits(norm="gemma", scaled_embedding=True, defaults={"head_dim": 256, "tie_word_embeddings": True}),
    "gemma3_text": Traits(
        norm="gemma", scaled_embedding=True, qk_norm=True, sandwich=True, local_layers=True,
        defaults={"head_dim": 256, "tie_word_embeddings": True},
    ),
    "phi": Traits(
        norm="layer", bias=True, gated=False, parallel=True, partial_rotary=True, output_projection="dense",
        defaults={"hidden_act": "gelu_new"},
    ),
    "phi3": Traits(fused=True, partial_rotary=True),
    "mixtral": Traits(experts=True),
    "qwen3_moe": Traits(experts=True, qk_norm=True, defaults={"head_dim": 128, "num_local_experts": 128}),
}  # fmt: skip
"""`model_type` to what its layers are, after `transformers/models/*/modeling_*.py` of transformers 5.23."""


@dataclass(frozen=True)
class Tensor:
    """One weight of the model."""

    name: str
    rows: int
    columns: int
    """1 for a vector."""
    linear: bool = False
    """Whether it is the weight of a `torch.nn.Linear`: only those are quantised."""
    stacked: int = 0
    """Weights that lie in one parameter without a linear layer around them: a router's 1, all experts'. PEFT adapts
    those too where `all-linear` is asked for."""
    ranks: int = 1
    """Times the adapter's rank: 2 where gate and up are stacked as one."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Shape:
    """The sizes of one model."""

    model_type: str
    traits: Traits
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    activation: str
    attention_bias: bool
    mlp_bias: bool
    rotary_share: float
    positions: int | None
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    dense_layers: frozenset[int] = frozenset()
    """Layers of a mixture of experts that have a plain MLP."""

    @property
    def query_width(self) -> int:
        """Features of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Features of all keys of a token."""
        return self.kv_heads * self.head_dim

    def has_experts(self, layer: int) -> bool:
        """Return whether the layer routes its tokens to experts."""
        return bool(self.experts) and layer not in self.dense_layers

    def layer_kinds(self) -> dict[int, int]:
        """Return one layer of each kind, and how many there are of it."""
        firsts: dict[bool, int] = {}
        counts: Counter[bool] = Counter()
        for layer in range(self.layers):
            firsts.setdefault(self.has_experts(layer), layer)
            counts[self.has_experts(layer)] += 1
        return {layer: counts[kind] for kind, layer in firsts.items()}

    def layer_tensors(self, layer: int) -> Iterator[Tensor]:
        """Yield the weights of one layer, named from the layer on."""
        hidden, traits = self.hidden, self.traits
        qkv = [("q_proj", self.query_width), ("k_proj", self.key_width), ("v_proj", self.key_width)]
        if traits.fused:
            qkv = [("qkv_proj", self.query_width + 2 * self.key_width)]
        for name, width in qkv:
            yield from _linear(f"self_attn.{name}", width, hidden, traits.qkv_bias or self.attention_bias)
        name = f"self_attn.{traits.output_projection}"
        yield from _linear(name, hidden, self.query_width, self.attention_bias)
        if traits.qk_norm:
            yield Tensor("self_attn.q_norm.weight", self.head_dim, 1)
            yield Tensor("self_attn.k_norm.weight", self.head_dim, 1)
        if self.has_experts(layer):
            yield Tensor("mlp.gate.weight", self.experts, hidden, stacked=1)
            rows = self.experts * 2 * self.expert_intermediate
            yield Tensor("mlp.experts.gate_up_proj", rows, hidden, stacked=self.experts, ranks=2)
            rows = self.experts * hidden
            yield Tensor("mlp.experts.down_proj", rows, self.expert_intermediate, stacked=self.experts)
        else:
            for name, rows, columns in self.mlp_sizes():
                yield from _linear(f"mlp.{name}", rows, columns, self.mlp_bias)
        norms = ["input_layernorm"]
        if not traits.parallel:
            norms.append("post_attention_layernorm")
        if traits.sandwich:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for name in norms:
            yield from self._norm(name)

    def mlp_sizes(self) -> list[tuple[str, int, int]]:
        """Return the linear layers of a plain MLP: name, outputs, inputs."""
        inner, hidden = self.intermediate, self.hidden
        if self.traits.fused:
            return [("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)]
        if self.traits.gated:
            return [("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)]
        return [("fc1", inner, hidden), ("fc2", hidden, inner)]

    def _norm(self, name: str) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", self.hidden, 1)
        if self.traits.norm == "layer":
            yield Tensor(f"{name}.bias", self.hidden, 1)

    def tensors(self) -> Iterator[Tensor]:
        """Yield every weight of the model once."""
        yield Tensor("model.embed_tokens.weight", self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for tensor in self.layer_tensors(layer):
                yield replace(tensor, name=f"model.layers.{layer}.{tensor.name}")
        yield from self._after_layers()

    def _after_layers(self) -> Iterator[Tensor]:
        final = "final_layernorm" if self.traits.norm == "layer" else "norm"
        yield from self._norm(f"model.{final}")
        if not self.tied:
            yield Tensor("lm_head.weight", self.vocabulary, self.hidden)
        if self.traits.bias:
            yield Tensor("lm_head.bias", self.vocabulary, 1)

    def parameters(self) -> int:
        """Return how many parameters the model has."""
        layers = sum(
            count * sum(tensor.elements for tensor in self.layer_tensors(layer))
            for layer, count in self.layer_kinds().items()
        )
        return self.vocabulary * self.hidden + layers + sum(tensor.elements for tensor in self._after_layers())

    def linear_elements(self) -> int:
        """Return how many numbers linear layers hold, the head left out: what quantisation takes."""
        return sum(
            count * sum(tensor.elements for tensor in self.layer_tensors(layer) if tensor.linear)
            for layer, count in self.layer_kinds().items()
        )

    def active_products(self, part: str = "") -> tuple[int, int]:
        """Return the weights that a token is multiplied with: in linear layers and experts, and in the head.

        Args:
            part: of the layers, what their tensors' names begin with: `mlp.` for the feed-forward part alone.
        """
        inner = 0
        for layer, count in self.layer_kinds().items():
            for tensor in self.layer_tensors(layer):
                if not tensor.name.startswith(part):
                    continue
                if tensor.name.startswith("mlp.experts."):
                    inner += count * tensor.elements * self.experts_per_token // self.experts
                elif tensor.linear or tensor.name == "mlp.gate.weight":
                    inner += count * tensor.elements
        return inner, self.vocabulary * self.hidden


def read_shape(config: Mapping[str, Any], source: str) -> Shape:
    """Return the sizes that a config.json tells of.

    Args:
        config: as it stands in the file.
        source: what the config belongs to, for messages.

    Raises:
        UserError: the config says too little.
        KeyError: there is no closed form for the architecture.
    """
    traits = ARCHITECTURES[str(config.get("model_type"))]
    known = {**(traits.defaults or {}), **{key: value for key, value in config.items() if value is not None}}

    def number(*names: str) -> int:
        for name in names:
            if isinstance(known.get(name), int) and known[name] > 0:
                return int(known[name])
        raise UserError(f"config of model {source!r}: {names[0]} is missing or no positive number")

    hidden, layers, heads = number("hidden_size"), number("num_hidden_layers"), number("num_attention_heads")
    rope = known.get("rope_parameters") or {}
    share = (
        rope.get("partial_rotary_factor", known.get("partial_rotary_factor", 1.0)) if isinstance(rope, dict) else 1.0
    )
    experts: dict[str, Any] = {}
    if traits.experts:
        count = number("num_local_experts", "num_experts")
        step, plain = int(known.get("decoder_sparse_step") or 1), set(known.get("mlp_only_layers") or [])
        experts = {
            "experts": count,
            "experts_per_token": number("num_experts_per_tok"),
            "expert_intermediate": number("moe_intermediate_size", "intermediate_size"),
            "dense_layers": frozenset(at for at in range(layers) if at in plain or (at + 1) % step),
        }
    return Shape(
        model_type=str(config["model_type"]),
        traits=traits,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=int(known.get("num_key_value_heads") or heads),
        head_dim=int(known.get("head_dim") or hidden // heads),
        intermediate=number("intermediate_size"),
        vocabulary=number("vocab_size"),
        tied=bool(known.get("tie_word_embeddings", False)),
        activation=str(known.get("hidden_activation") or known.get("hidden_act") or "silu"),
        attention_bias=traits.bias or bool(known.get("attention_bias", False)),
        mlp_bias=traits.bias or bool(known.get("mlp_bias", False)),
        rotary_share=float(share) if traits.partial_rotary else 1.0,
        positions=known.get("max_position_embeddings"),
        **experts,
    )


def four_bit_bytes(elements: int, double_quantized: bool) -> int:
    """Return what a weight in 4 bits takes: packed pairs, a maximum a block of 64, and the tables of both.

    Dettmers et al. 2023, arXiv:2305.14314, section 3; `bitsandbytes/functional.py`, `quantize_4bit`: with double
    quantisation the maxima are bytes with a float32 maximum a block of 256, a table of 256 float32 and an offset.
    """
    blocks = math.ceil(elements / 64)
    packed = math.ceil(elements / 2) + 16 * 4
    return packed + (blocks + math.ceil(blocks / 256) * 4 + 256 * 4 + 4 if double_quantized else 4 * blocks)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", rows, columns, linear=True)
    if bias:
        yield Tensor(f"{name}.bias", rows, 1)

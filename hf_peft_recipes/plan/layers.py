"""The layers of language models in sizes, written as `transformers/models/*/modeling_*.py` have them (5.23)."""

from __future__ import annotations

from typing import Any

from hf_peft_recipes.plan.linear_sizes import LinearSizes
from hf_peft_recipes.plan.linears import Walk
from hf_peft_recipes.plan.operations import INDEX
from hf_peft_recipes.plan.sizes import FLOAT32, Node, Value
from hf_peft_recipes.plan.weights import Model


def walk_backbone(walk: Walk, model: Model, tokens: int) -> Value:
    """Return the hidden states after the last norm."""
    job, shape, ledger = model.job, model.shape, walk.ledger
    hidden = _embed(walk, model, tokens)
    mask = walk.fresh(job.attended**2 if job.packed else 0, 1) if job.needs_mask else None
    positions = job.attended if job.packed else job.length
    width = int(shape.head_dim * shape.rotary_share)
    kinds = 2 if shape.traits.local_layers else 1
    with ledger.making("activations"):
        rotary = [walk.fresh(positions * width, hidden.itemsize) for _ in range(2 * kinds)]
    cos, sin = rotary[:2]
    blocks, feed_forwards, _ = job.stretches(shape.layers)
    for layer in range(shape.layers):
        in_part = blocks <= layer < blocks + feed_forwards and ledger.recording

        def block(x: Value, at: int = layer, in_part: bool = in_part) -> Value:
            return _layer(walk, model, at, x, cos, sin, in_part)

        ledger.mark()
        again = layer < blocks and ledger.recording
        hidden = walk.checkpointed(block, hidden, job.offloads) if again else block(hidden)
    ledger.mark()
    final = "model.final_layernorm" if shape.traits.norm == "layer" else "model.norm"
    out = _norm(walk, model, final, hidden)
    del mask
    return out


def _embed(walk: Walk, model: Model, tokens: int) -> Value:
    weight, shape = model.weights["model.embed_tokens.weight"], model.shape

    def backward(_: Value) -> list[Value]:
        return [walk.fresh(weight.elements, weight.itemsize)]

    hidden = walk.make(tokens * shape.hidden, weight.itemsize, [weight], backward)
    if shape.traits.scaled_embedding:
        hidden = walk.unary(hidden)
    # Upstream lets the first block's input ask for a gradient, which re-entrant checkpointing would need.
    if model.job.checkpointing and hidden.node is None and walk.ledger.recording:
        hidden.node = Node(walk.ledger, [], None)
    return hidden


def _norm(walk: Walk, model: Model, name: str, x: Value) -> Value:
    weight = model.weights[f"{name}.weight"]
    if model.shape.traits.norm == "layer":
        return walk.layer_norm(x, weight, model.weights[f"{name}.bias"])
    return walk.rms_norm(x, weight, model.shape.traits.norm == "gemma")


def _layer(
    walk: Walk, model: Model, layer: int, hidden: Value, cos: Value, sin: Value, recomputes: bool = False
) -> Value:
    name, traits = f"model.layers.{layer}", model.shape.traits
    residual = hidden
    normed = _norm(walk, model, f"{name}.input_layernorm", hidden)
    attended = _attention(walk, model, f"{name}.self_attn", normed, cos, sin)
    if traits.parallel:
        fed = _feed_forward(walk, model, layer, normed, recomputes)
        return walk.add(walk.add(attended, fed), residual)
    del normed
    if traits.sandwich:
        attended = _norm(walk, model, f"{name}.post_attention_layernorm", attended)
    hidden = walk.add(residual, attended)
    del attended
    residual = hidden
    second = "pre_feedforward_layernorm" if traits.sandwich else "post_attention_layernorm"
    hidden = _norm(walk, model, f"{name}.{second}", hidden)
    hidden = _feed_forward(walk, model, layer, hidden, recomputes)
    if traits.sandwich:
        hidden = _norm(walk, model, f"{name}.post_feedforward_layernorm", hidden)
    return walk.add(residual, hidden)


def _attention(walk: Walk, model: Model, name: str, x: Value, cos: Value, sin: Value) -> Value:
    shape, job, traits = model.shape, model.job, model.shape.traits
    tokens = x.elements // shape.hidden
    if traits.fused:
        qkv = walk.linear(x, model.linears[f"{name}.qkv_proj"])
        q = walk.view(qkv, tokens * shape.query_width)
        k, v = (walk.view(qkv, tokens * shape.key_width) for _ in range(2))
        # The local variable of the layer's code holds it all.
        held: Any = qkv
    else:
        parts = [model.linears[f"{name}.{part}_proj"] for part in "qkv"]
        as_one = job.own_qkv and all(part.lora for part in parts)
        q, k, v = walk.own_linears(x, parts) if as_one else [walk.linear(x, part) for part in parts]
        held = None
    del x
    if traits.qk_norm:
        gemma = traits.norm == "gemma"
        q = walk.rms_norm(q, model.weights[f"{name}.q_norm.weight"], gemma)
        k = walk.rms_norm(k, model.weights[f"{name}.k_norm.weight"], gemma)
    partial = traits.partial_rotary
    share = shape.rotary_share
    q = walk.rotate(q, cos, sin, partial, int(q.elements * share))
    k = walk.rotate(k, cos, sin, partial, int(k.elements * share))
    mask = None
    # sdpa_attention.py repeats keys and values under a mask, and our kernel by document does on a GPU.
    if shape.heads != shape.kv_heads and (job.needs_mask or (job.copies_documents and not job.on_cpu)):
        k, v = (_repeat(walk, value, shape.heads // shape.kv_heads) for value in (k, v))
    if job.needs_mask:
        # Torch makes the mask a number for every layer anew.
        mask = walk.fresh(job.attended**2, q.itemsize)
        if walk.ledger.recording:
            mask.storage.move("activations")
    out = walk.attend(q, k, v, shape.heads, job.document_kernel)
    if mask is not None and out.node is not None:
        out.node.backward = _holding(out.node.backward, mask)
    if partial and not job.copies_documents:
        # Heads that were put together lie one behind the other, and so does what the kernel gives.
        out = walk.unary(out)
    del q, k, v, mask, held
    return walk.linear(out, model.linears[f"{name}.{traits.output_projection}"])


def _holding(backward: Any, kept: Any) -> Any:
    return lambda g, _kept=kept: backward(g)


def _repeat(walk: Walk, x: Value, times: int) -> Value:
    elements, itemsize = x.elements, x.itemsize
    return walk.make(elements * times, itemsize, [x], lambda _: [walk.fresh(elements, itemsize)])


def _activate(walk: Walk, name: str, x: Value) -> Value:
    if name == "gelu_new":
        # 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), each operation on its own: transformers/activations.py.
        cube = walk.unary(walk.unary(x, "input", spikes=2))
        inner = walk.unary(walk.add(x, cube))
        del cube
        tanh = walk.unary(walk.unary(inner, "output"))
        del inner
        return walk.mul(walk.unary(x), tanh)
    return walk.unary(x, "input")


def _feed_forward(walk: Walk, model: Model, layer: int, x: Value, recomputes: bool) -> Value:
    """Return the output of the feed-forward part; `recomputes` keeps nothing of what it makes inside."""
    name = f"model.layers.{layer}.mlp"
    if model.job.gates_as_one(model.shape, layer):
        gate, up, down = (model.linears[f"{name}.{part}_proj"] for part in ("gate", "up", "down"))
        return walk.own_mlp(x, gate, up, down, recomputes)
    part = _experts if model.shape.has_experts(layer) else _mlp
    if not recomputes:
        return part(walk, model, name, x)
    return walk.checkpointed(lambda given: part(walk, model, name, given), x)


def _mlp(walk: Walk, model: Model, name: str, x: Value) -> Value:
    shape = model.shape
    if not shape.traits.gated:
        x = walk.linear(x, model.linears[f"{name}.fc1"])
        x = _activate(walk, shape.activation, x)
        return walk.linear(x, model.linears[f"{name}.fc2"])
    if shape.traits.fused:
        both = walk.linear(x, model.linears[f"{name}.gate_up_proj"])
        half = both.elements // 2
        up = walk.view(both, half)
        x = walk.mul(up, _activate(walk, shape.activation, walk.view(both, half)))
        del up, both
        return walk.linear(x, model.linears[f"{name}.down_proj"])
    gate = _activate(walk, shape.activation, walk.linear(x, model.linears[f"{name}.gate_proj"]))
    x = walk.mul(gate, walk.linear(x, model.linears[f"{name}.up_proj"]))
    del gate
    return walk.linear(x, model.linears[f"{name}.down_proj"])


def _experts(walk: Walk, model: Model, name: str, x: Value) -> Value:
    """Return the experts' output by grouped products: `transformers/integrations/moe.py`, every token sent to k."""
    shape = model.shape
    tokens = x.elements // shape.hidden
    sent, itemsize = tokens * shape.experts_per_token, x.itemsize
    router = _adapted(walk, model.linears[f"{name}.gate"])
    logits = walk.product(x, LinearSizes(shape.hidden, shape.experts, router))
    del router
    shares = walk.unary(walk.cast(logits, FLOAT32), "output")
    del logits
    whole = shares.elements
    chosen = walk.fresh(sent, INDEX)

    def spread(_: Value, kept: Value = chosen) -> list[Value | None]:
        return [walk.fresh(whole, FLOAT32)]

    scores = walk.make(sent, FLOAT32, [shares], spread)
    scores = walk.cast(walk.unary(scores, "output"), itemsize)
    del shares
    order = [walk.fresh(sent, INDEX) for _ in range(2)]

    def gather(value: Value, elements: int) -> Value:
        size, kind = value.elements, value.itemsize
        index = walk.fresh(sent, INDEX)

        def scatter(_: Value, kept: Value = index) -> list[Value | None]:
            return [walk.fresh(size, kind)]

        return walk.make(elements, kind, [value], scatter, [index])

    taken = gather(x, sent * shape.hidden)
    weights = gather(scores, sent)
    experts = [_adapted(walk, model.linears[f"{name}.experts.{part}_proj"]) for part in ("gate_up", "down")]
    up = LinearSizes(shape.hidden, 2 * shape.expert_intermediate, experts[0])
    down = LinearSizes(shape.expert_intermediate, shape.hidden, experts[1])
    both = _grouped(walk, taken, up)
    half = both.elements // 2
    gate = _activate(walk, shape.activation, walk.view(both, half))
    out = walk.mul(gate, walk.view(both, half))
    del gate, both
    out = _grouped(walk, out, down)
    out = walk.mul(out, weights)
    out = gather(out, sent * shape.hidden)
    elements, kept_size = tokens * shape.hidden, out.itemsize
    total = walk.make(elements, kept_size, [out], lambda g: [walk.view(g, elements)])
    del out, taken, weights, scores, order, chosen, up, down, experts
    return walk.cast(total, itemsize)


def _adapted(walk: Walk, linear: LinearSizes) -> Any:
    """Return a stacked weight with LoRA's product added to it, whole: `ParamWrapper` of `peft/tuners/lora/layer.py`."""
    weight = linear.weight
    if linear.lora is None:
        return weight
    factors = [walk.cast(factor, weight.itemsize) for factor in linear.lora]
    sizes, itemsize = [factor.elements for factor in factors], weight.itemsize

    def backward(_: Value, kept: Any = tuple(factors)) -> list[Value]:
        return [walk.fresh(size, itemsize) for size in sizes]

    return walk.make(weight.elements, itemsize, factors, backward, factors)


def _grouped(walk: Walk, x: Value, linear: LinearSizes) -> Value:
    """Return products of every row with its expert's weight; autocast leaves these alone."""
    x, weight = walk.cast(x, linear.weight.itemsize), linear.weight
    sizes, itemsize = (x.elements, weight.elements), x.itemsize
    needs = [x.node is not None, weight.node is not None]

    kept_x, kept_weight = (x if needs[1] else None), (weight if needs[0] else None)

    def backward(_: Value, kept: Any = (kept_x, kept_weight)) -> list[Value | None]:
        return [walk.fresh(size, itemsize) if need else None for size, need in zip(sizes, needs, strict=True)]

    rows = x.elements // linear.inputs
    return walk.make(rows * linear.outputs, itemsize, [x, weight], backward, [kept_x, kept_weight])

"""The operations that the layers of language models are made of, each with what it makes and what autograd saves of it.

Sources: what is saved, torch's `tools/autograd/derivatives.yaml`; what autocast runs in which precision,
`aten/src/ATen/autocast_mode.h`; LoRA, `peft/tuners/lora/layer.py` and `bnb.py`; 4-bit products,
bitsandbytes' `autograd/_functions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.plan.sizes import FLOAT32, Ledger, Node, Value, Weight, run_backward

INDEX = 8
"""Bytes of a token id, a position, an index."""


@dataclass(slots=True)
class LinearSizes:
    """One linear layer with what an adapter adds to it."""

    inputs: int
    outputs: int
    weight: Any
    """A `Weight`, or the value that was made of one."""
    bias: Weight | None = None
    bits: int = 0
    """4 or 8 where the weight is quantised."""
    lora: tuple[Weight, Weight] | None = None
    dropout: bool = False
    magnitude: Weight | None = None
    """DoRA's."""

    def added(self) -> list[Weight]:
        """Return what the adapter has of its own."""
        return [*(self.lora or ()), *([] if self.magnitude is None else [self.magnitude])]


class Walk:
    """Walks a step's operations for one device and precision."""

    def __init__(self, ledger: Ledger, tokens: int, autocast: int | None, kind: str) -> None:
        self.ledger, self.tokens, self.kind = ledger, tokens, kind
        self.autocast = autocast
        """Bytes of autocast's dtype, None without autocast."""
        self.keeps_casts = True
        """Whether autocast keeps the casts of trained weights: not in inference mode."""
        self._casts: dict[int, Value] = {}

    @contextmanager
    def autocasting(self) -> Iterator[None]:
        """Keep the casts of trained weights until the block ends, as autocast does."""
        kept, self._casts = self._casts, {}
        try:
            yield
        finally:
            self._casts = kept

    def make(
        self,
        elements: int,
        itemsize: int,
        parents: Sequence[Value | Weight] = (),
        backward: Callable[[Value], Sequence[Value | None]] | None = None,
        saved: Sequence[Value | Weight | None] = (),
    ) -> Value:
        """Return a new value; `backward` holds on to what is saved, where autograd records."""
        value = Value(self.ledger, elements, itemsize)
        if self.ledger.recording:
            for parent in parents:
                if parent.node is not None:
                    break
            else:
                return value
            for kept in saved:
                if isinstance(kept, Value):
                    kept.storage.move("activations")
            value.node = Node(self.ledger, parents, backward)
        return value

    def fresh(self, elements: int, itemsize: int) -> Value:
        """Return a gradient, or another value without a way back."""
        return Value(self.ledger, elements, itemsize)

    def cast(self, x: Value | Weight, itemsize: int) -> Any:
        """Return `x` in another precision; itself where it has that already."""
        if x.itemsize == itemsize:
            return x
        before = x.itemsize
        return self.make(x.elements, itemsize, [x], lambda g: [self.fresh(g.elements, before)])

    def mul(self, a: Value | Weight, b: Value | Weight) -> Value:
        """Return the product element by element, the smaller one broadcast."""
        elements, itemsize = max(a.elements, b.elements), max(a.itemsize, b.itemsize)
        a_needs, b_needs = a.node is not None, b.node is not None
        kept_a, kept_b = (a if b_needs else None), (b if a_needs else None)
        sides = [(a.elements, a.itemsize, a_needs), (b.elements, b.itemsize, b_needs)]

        def backward(g: Value, _kept: Any = (kept_a, kept_b)) -> list[Value | None]:
            return [self._reduced(g, *side) for side in sides]

        return self.make(elements, itemsize, [a, b], backward, [kept_a, kept_b])

    def _reduced(self, g: Value, elements: int, itemsize: int, needed: bool) -> Value | None:
        if not needed:
            return None
        made = self.fresh(g.elements, g.itemsize)
        return made if (elements, itemsize) == (made.elements, made.itemsize) else self.fresh(elements, itemsize)

    def add(self, a: Value, b: Value) -> Value:
        """Return the sum, which saves nothing: the gradient goes on as it is."""
        sizes = [value.itemsize if value.node is not None else None for value in (a, b)]

        def backward(g: Value) -> list[Value | None]:
            return [
                None if size is None else g if size == g.itemsize else self.fresh(g.elements, size) for size in sizes
            ]

        return self.make(max(a.elements, b.elements), max(a.itemsize, b.itemsize), [a, b], backward)

    def unary(self, x: Value, saves: str = "", spikes: int = 0) -> Value:
        """Return a function of `x` element by element that saves its `input`, its `output` or nothing.

        Args:
            x: the input.
            saves: what of it autograd keeps.
            spikes: temporaries of the size of the gradient on the way back.
        """
        itemsize, kept = x.itemsize, x if saves == "input" else None
        holder: list[Value] = []

        def backward(g: Value, _kept: Any = (kept, holder)) -> list[Value]:
            self.ledger.spike("workspace", spikes * g.size_bytes)
            return [self.fresh(g.elements, itemsize)]

        out = self.make(x.elements, itemsize, [x], backward, [kept])
        if saves == "output" and out.node is not None:
            out.storage.move("activations")
            kept_out = Value.__new__(Value)
            kept_out.elements, kept_out.itemsize, kept_out.node, kept_out.storage = (
                out.elements,
                itemsize,
                None,
                out.storage,
            )
            holder.append(kept_out)
        return out

    def view(self, x: Value, elements: int | None = None) -> Value:
        """Return a part of `x` that shares its memory; its gradient is as large as all of `x`."""
        seen = Value.__new__(Value)
        seen.elements, seen.itemsize = elements or x.elements, x.itemsize
        seen.storage, seen.node = x.storage, None
        whole = x.elements
        if x.node is not None and self.ledger.recording:
            seen.node = Node(self.ledger, [x], lambda g: [g if g.elements == whole else self.fresh(whole, g.itemsize)])
        return seen

    def rms_norm(self, x: Value, weight: Weight, gemma: bool = False) -> Value:
        """Return `x` normed as Llama's RMSNorm does, or as Gemma's, which weighs in float32."""
        itemsize, rows = x.itemsize, x.elements // weight.elements
        x = self.cast(x, FLOAT32)
        root = self._mean_of_squares(x, rows)
        x = self.mul(x, root)
        del root
        if gemma:
            scaled = self.cast(weight, FLOAT32)
            x = self.mul(x, self.make(weight.elements, FLOAT32, [scaled], lambda g: [g]))
            return self.cast(x, itemsize)
        return self.mul(weight, self.cast(x, itemsize))

    def _mean_of_squares(self, x: Value, rows: int) -> Value:
        whole = x.elements
        squares = self.unary(x, "input", spikes=2)
        mean = self.make(rows, FLOAT32, [squares], lambda _: [self.fresh(whole, FLOAT32)])
        del squares
        return self.unary(mean, "output")

    def layer_norm(self, x: Value, weight: Weight, bias: Weight) -> Value:
        """Return `x` normed by `torch.nn.LayerNorm`, which autocast runs in float32 on a GPU."""
        if self.autocast and self.kind == "cuda":
            x = self.cast(x, FLOAT32)
        rows, elements, itemsize = x.elements // weight.elements, x.elements, x.itemsize
        statistics = [self.fresh(rows, FLOAT32), self.fresh(rows, FLOAT32)]
        needs = [side.node is not None for side in (x, weight, bias)]

        def backward(g: Value, _kept: Any = (x, statistics)) -> list[Value | None]:
            sizes = (elements, weight.elements, bias.elements)
            return [self.fresh(size, itemsize) if need else None for size, need in zip(sizes, needs, strict=True)]

        return self.make(elements, itemsize, [x, weight, bias], backward, [x, *statistics])

    def rotate(self, x: Value, cos: Value, sin: Value, partial: bool = False, rotated: int | None = None) -> Value:
        """Return queries or keys with rotary positions: `x·cos + rotate_half(x)·sin`.

        Args:
            x: queries or keys.
            cos: of every position, shared by all layers.
            sin: likewise.
            partial: whether the rotated part and the rest are put together again, as Phi does.
            rotated: elements that are rotated, all by default.
        """
        rotated = rotated or x.elements
        part = self.view(x, rotated) if partial else x
        straight = self.mul(part, cos)
        half = rotated // 2
        negated = self.unary(self.view(part, half))
        turned = self.cat(rotated, [negated, self.view(part, half)])
        del negated
        turned = self.mul(turned, sin)
        out = self.add(straight, turned)
        if partial:
            del straight, turned
            out = self.cat(x.elements, [out, self.view(x, x.elements - rotated)] if x.elements > rotated else [out])
        return out

    def cat(self, elements: int, parts: Sequence[Value]) -> Value:
        """Return the parts put together; the gradients of the parts are views of the whole one."""
        itemsize = parts[0].itemsize
        sizes = [part.elements for part in parts]

        def backward(g: Value) -> list[Value]:
            return [_shared(g, size) for size in sizes]

        return self.make(elements, itemsize, list(parts), backward)

    def product(self, x: Value, linear: LinearSizes) -> Value:
        """Return `x` times a weight, in autocast's precision."""
        rows = x.elements // linear.inputs
        if linear.bits == 8:
            return self._product_8bit(x, linear, rows)
        x = self.cast(x, self.autocast) if self.autocast else x
        if linear.bits == 4:
            return self._product_4bit(x, linear, rows)
        weight = self._operand(linear.weight)
        itemsize = x.itemsize
        sizes = (x.elements, weight.elements, linear.outputs)
        bias = None if linear.bias is None else self._operand(linear.bias)
        needs = [x.node is not None, weight.node is not None, bias is not None and bias.node is not None]
        kept = (x if needs[1] else None, weight if needs[0] else None)

        def backward(g: Value, _kept: Any = kept) -> list[Value | None]:
            made = [self.fresh(size, itemsize) if need else None for size, need in zip(sizes, needs, strict=True)]
            return made[:number]

        number = 2 if bias is None else 3
        parents: list[Value | Weight] = [x, weight]
        if bias is not None:
            parents.append(bias)
        return self.make(rows * linear.outputs, itemsize, parents, backward, kept)

    def _product_4bit(self, x: Value, linear: LinearSizes, rows: int) -> Value:
        dequantized, itemsize, elements = linear.inputs * linear.outputs * 2, x.itemsize, x.elements
        self.ledger.spike("dequantization", dequantized)

        def backward(g: Value) -> list[Value]:
            with self.ledger.making("dequantization"):
                weight = self.fresh(dequantized // 2, 2)
            made = self.fresh(elements, itemsize)
            del weight
            return [made]

        return self.make(rows * linear.outputs, itemsize, [x], backward)

    def _product_8bit(self, x: Value, linear: LinearSizes, rows: int) -> Value:
        """Return the product of bitsandbytes' `MatMul8bitLt`, on a CPU `MatMul8bitFp`; both keep `x` to the end."""
        whole, elements, itemsize = linear.inputs * linear.outputs, x.elements, x.itemsize
        made_bytes = itemsize
        if self.kind == "cuda":
            # A float16 copy of x, then x in bytes and the product in whole numbers; columns of outliers are few.
            self.ledger.spike("workspace", elements * 3)
            with self.ledger.making("workspace"):
                held = [self.fresh(elements, 1), self.fresh(rows * linear.outputs, FLOAT32)]
        else:
            made_bytes = self.autocast or itemsize
            with self.ledger.making("dequantization"):
                held = [self.fresh(whole, itemsize)]
                if made_bytes != itemsize:
                    held += [self.fresh(elements, made_bytes), self.fresh(whole, made_bytes)]

        def backward(g: Value) -> list[Value | None]:
            g = self.cast(g, itemsize)
            with self.ledger.making("dequantization"):
                weight = self.fresh(whole, itemsize)
            made = self.fresh(elements, itemsize)
            del weight
            return [made]

        out = self.make(rows * linear.outputs, made_bytes, [x], backward)
        del held
        if out.node is not None:
            out.node.keep([x])
        elif self.ledger.pinned is not None:
            self.ledger.pinned.append(x)
        return out

    def dropout(self, x: Value) -> Value:
        """Return `x` with some of it zeroed: a GPU keeps a byte an element, elsewhere the factors are kept whole."""
        elements, itemsize = x.elements, x.itemsize
        kept = self.fresh(elements, 1 if self.kind == "cuda" else itemsize)

        def backward(_: Value, _kept: Value = kept) -> list[Value | None]:
            return [self.fresh(elements, itemsize)]

        return self.make(elements, itemsize, [x], backward, [kept])

    def _operand(self, weight: Value | Weight) -> Value | Weight:
        if self.autocast is None or weight.itemsize == self.autocast:
            return weight
        if weight.node is None or not self.keeps_casts:
            cast: Value = self.cast(weight, self.autocast)
            return cast
        # Autocast keeps the cast of a leaf that is trained, and makes every other one anew.
        if id(weight) not in self._casts:
            self._casts[id(weight)] = self.cast(weight, self.autocast)
        return self._casts[id(weight)]

    def linear(self, x: Value, linear: LinearSizes) -> Value:
        """Return the output of a linear layer, LoRA's part included."""
        result = self.product(x, linear)
        if linear.lora is None:
            return result
        itemsize = result.itemsize
        if linear.bits == 4:
            result = self.unary(result)  # peft clones it
        # peft/tuners/lora/bnb.py asks for the GPU's autocast; elsewhere x goes to the adapter's precision.
        if not (linear.bits and self.kind == "cuda" and self.autocast):
            x = self.cast(x, linear.lora[0].itemsize)
        if linear.magnitude is not None:
            return self.cast(self.add(result, self._scaled_by_magnitude(x, result, linear)), itemsize)
        wide = self._low_rank(self.dropout(x) if linear.dropout else x, linear)
        scaled = self.unary(wide)
        del wide
        if linear.bits:
            scaled = self.cast(scaled, itemsize)
        return self.cast(self.add(result, scaled), itemsize)

    def _low_rank(self, x: Value, linear: LinearSizes) -> Value:
        assert linear.lora is not None
        down, up = linear.lora
        rank = down.elements // linear.inputs
        low = self.product(x, LinearSizes(linear.inputs, rank, down))
        return self.product(low, LinearSizes(rank, linear.outputs, up))

    def _scaled_by_magnitude(self, x: Value, result: Value, linear: LinearSizes) -> Value:
        """Return what DoRA adds to the result: `DoraLinearLayer.forward` of `peft/tuners/lora/dora.py`."""
        assert linear.magnitude is not None
        whole = linear.inputs * linear.outputs
        # The adapter's product by way of a unit matrix, which keeps its way back until the function ends.
        unit = self.fresh(linear.inputs**2, FLOAT32)
        added = self._low_rank(unit, linear)
        del unit
        added = self.cast(added, x.itemsize)
        weight = self.cast(linear.weight, x.itemsize)
        scaled = self.fresh(whole, x.itemsize)
        total = self.fresh(whole, x.itemsize)
        del scaled
        norm = self.fresh(linear.outputs, x.itemsize)
        del total
        scale = self.mul(linear.magnitude, norm)
        low = self._low_rank(x, linear)
        from_base = self.mul(self.unary(scale), result)
        out = self.add(from_base, self.unary(self.mul(scale, low)))
        del added, weight, low, from_base
        return out

    def attend(self, q: Value, k: Value, v: Value, heads: int, copies: bool, score_bytes: int = 0) -> Value:
        """Return the attention's output from a kernel that keeps no scores, only a sum a query and head.

        Args:
            q: queries.
            k: keys.
            v: values.
            heads: of the queries.
            copies: whether the output is put together from documents, as the faster path on a CPU does.
            score_bytes: what the kernel holds while it works.
        """
        if self.autocast:
            q, k, v = (self.cast(value, self.autocast) for value in (q, k, v))
        sums = self.fresh(self.tokens * heads, FLOAT32)
        sizes, itemsize = [value.elements for value in (q, k, v)], q.itemsize
        needs = [value.node is not None for value in (q, k, v)]
        holder: list[Any] = []

        def backward(g: Value, _kept: Any = (q, k, v, sums, holder)) -> list[Value | None]:
            self.ledger.spike("workspace", score_bytes)
            return [self.fresh(size, itemsize) if need else None for size, need in zip(sizes, needs, strict=True)]

        self.ledger.spike("workspace", score_bytes)
        out = self.make(q.elements, itemsize, [q, k, v], backward, [q, k, v, sums])
        if out.node is not None:
            out.storage.move("activations")
            holder.append(out.storage)
        return self.cat(out.elements, [out]) if copies else out

    def checkpointed(self, block: Callable[[Value], Value], x: Value) -> Value:
        """Return the block's output, all that it saves made anew on the way back (Chen et al. 2016, arXiv:1604.06174).

        `torch.utils.checkpoint` without re-entry: only the block's input is kept, and what
        a context holds as its attribute, which checkpointing does not see.
        """
        with self.ledger.not_recording():
            self.ledger.pinned = []
            out = block(x)
            pinned, self.ledger.pinned = self.ledger.pinned, None

        def backward(g: Value, _kept: Value = x) -> list[Value | None]:
            leaf = Node(self.ledger, [], None)
            again = Value.__new__(Value)
            again.elements, again.itemsize, again.storage, again.node = x.elements, x.itemsize, x.storage, leaf
            with self.autocasting():
                made = block(again)
            root, made = made.node, None  # type: ignore[assignment]
            return [run_backward(self.ledger, root, g, leaf)]

        # A block is trained through even where its input asks for no gradient.
        out.node = Node(self.ledger, [x], backward)
        out.node.keep(pinned)
        x.storage.move("activations")
        return out


def _shared(g: Value, elements: int) -> Value:
    part = Value.__new__(Value)
    part.elements, part.itemsize, part.node, part.storage = elements, g.itemsize, None, g.storage
    return part

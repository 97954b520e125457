"""The operations that the layers of language models are made of, each with what it makes and what autograd saves of it.

Sources: what is saved, torch's `tools/autograd/derivatives.yaml`; what autocast runs in which precision,
`aten/src/ATen/autocast_mode.h`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hf_peft_recipes.plan.sizes import FLOAT32, Ledger, Node, Value, Weight, run_backward
from hf_peft_recipes.speed import ATTENTION_BLOCK, ATTENTION_COLUMNS, ATTENTION_SCORES

INDEX = 8
"""Bytes of a token id, a position, an index."""


class Operations:
    """Walks operations for one device and precision."""

    def __init__(self, ledger: Ledger, tokens: int, autocast: int | None, kind: str) -> None:
        self.ledger, self.tokens, self.kind = ledger, tokens, kind
        self.autocast = autocast
        """Bytes of autocast's dtype, None without autocast."""
        self.keeps_casts = True
        """Whether autocast keeps the casts of trained weights: not in inference mode."""
        self.own_layers = False
        """Whether norms and rotary positions are functions of our own: in training, by `speed/`."""
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
        if self.own_layers and not gemma and weight.node is None and weight.itemsize == itemsize:
            return self._own_rms_norm(x, rows)
        x = self.cast(x, FLOAT32)
        root = self._mean_of_squares(x, rows)
        x = self.mul(x, root)
        del root
        if gemma:
            scaled = self.cast(weight, FLOAT32)
            x = self.mul(x, self.make(weight.elements, FLOAT32, [scaled], lambda g: [g]))
            return self.cast(x, itemsize)
        return self.mul(weight, self.cast(x, itemsize))

    def _own_rms_norm(self, x: Value, rows: int) -> Value:
        """Return the output of `RmsNorm`, `speed/rms_norm.py`."""
        elements, itemsize = x.elements, x.itemsize
        scale = self.fresh(rows, FLOAT32)

        def backward(_: Value, _kept: Any = (x, scale)) -> list[Value]:
            parts = [self.fresh(elements, FLOAT32) for _ in range(2 if itemsize == FLOAT32 else 3)]
            del parts[2:]
            return [self.fresh(elements, itemsize) if itemsize != FLOAT32 else parts[0]]

        # In float32 there is neither a cast of x nor one of the output.
        wide = [self.fresh(elements, FLOAT32) for _ in range(1 if itemsize == FLOAT32 else 2)]
        del wide[1:]
        out = wide[0] if itemsize == FLOAT32 else self.fresh(elements, itemsize)
        made = self.make(0, itemsize, [x], backward, [x, scale])
        out.node = made.node
        return out

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
        if self.own_layers and not partial and x.itemsize == cos.itemsize:
            # `Rotary`, `speed/rotary.py`, keeps nothing but the positions that all layers share.
            elements, itemsize = x.elements, x.itemsize
            return self.make(elements, itemsize, [x], lambda _: [self.fresh(elements, itemsize)])
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

    def attend(self, q: Value, k: Value, v: Value, heads: int, kernel: str) -> Value:
        """Return the attention's output from a kernel that keeps no scores, only a sum a query and head.

        Args:
            q: queries.
            k: keys.
            v: values.
            heads: of the queries.
            kernel: of our own, as `attention_kernel` of the faster paths names it; empty where none is.
        """
        if self.autocast:
            q, k, v = (self.cast(value, self.autocast) for value in (q, k, v))
        if kernel == "by_document":
            q, k, v = (self._copied(value) for value in (q, k, v))
        sums = self.fresh(self.tokens * heads, FLOAT32)
        sizes, itemsize = [value.elements for value in (q, k, v)], q.itemsize
        needs = [value.node is not None for value in (q, k, v)]
        holder: list[Any] = []

        def backward(g: Value, _kept: Any = (q, k, v, sums, holder)) -> list[Value | None]:
            if kernel == "by_block":
                return self._attend_back(sizes, heads, itemsize)
            return [self.fresh(size, itemsize) if need else None for size, need in zip(sizes, needs, strict=True)]

        if kernel == "by_block":
            # Laid out, what comes of it, and that put together, for as long as the kernel works.
            laid = [self.fresh(size, itemsize) for size in (*sizes, sizes[0])]
            del laid[:3]
            laid.append(self.fresh(sizes[0], itemsize))
        out = self.make(q.elements, itemsize, [q, k, v], backward, [q, k, v, sums])
        if out.node is not None:
            out.storage.move("activations")
            holder.append(out.storage)
        return self._copied(self.cat(out.elements, [out])) if kernel == "by_document" else out

    def _attend_back(self, sizes: Sequence[int], heads: int, itemsize: int) -> list[Value | None]:
        """Return the gradients by queries, keys and values, made by products of a block at a time."""
        q, k, v = sizes
        wider = 1 + ATTENTION_COLUMNS * heads * self.tokens / q
        # What was asked and what is given back, keys and values, laid out; what comes of it, sums in float32.
        laid = [self.fresh(round(size * wider), itemsize) for size in (q, q, k, v)]
        laid += [self.fresh(q, itemsize), self.fresh(k, FLOAT32), self.fresh(v, FLOAT32)]
        of_head = min(ATTENTION_BLOCK, self.tokens) * self.tokens
        # One head of keys, with all of queries that share it, is never divided.
        scores = min(max(ATTENTION_SCORES, q // k * of_head), heads * of_head)
        self.ledger.spike("workspace", 2 * itemsize * scores)
        return [self.fresh(size, itemsize) for size in sizes]

    def _copied(self, x: Value) -> Value:
        """Return `x` in another order."""
        elements, itemsize = x.elements, x.itemsize
        return self.make(elements, itemsize, [x], lambda _: [self.fresh(elements, itemsize)])

    def checkpointed(self, block: Callable[[Value], Value], x: Value, offloads: bool = False) -> Value:
        """Return the block's output, all that it saves made anew on the way back (Chen et al. 2016, arXiv:1604.06174).

        `torch.utils.checkpoint` without re-entry: only the block's input is kept, and what
        a context holds as its attribute, which checkpointing does not see.

        Args:
            block: makes the output.
            x: its input.
            offloads: whether that waits elsewhere.
        """
        with self.ledger.not_recording():
            self.ledger.pinned = []
            out = block(x)
            pinned, self.ledger.pinned = self.ledger.pinned, None
        needs, elements, itemsize = x.node is not None, x.elements, x.itemsize

        def backward(g: Value, _kept: Value | None = None if offloads else x) -> list[Value | None]:
            leaf = Node(self.ledger, [], None) if needs else None
            again = self.fresh(elements, itemsize) if _kept is None else _shared(_kept, elements)
            again.node = leaf
            with self.autocasting():
                made = block(again)
            root, made = made.node, None  # type: ignore[assignment]
            return [run_backward(self.ledger, root, g, leaf)]

        # A block is trained through even where its input asks for no gradient.
        out.node = Node(self.ledger, [x], backward)
        out.node.keep(pinned)
        if not offloads:
            x.storage.move("activations")
        return out


def _shared(g: Value, elements: int) -> Value:
    part = Value.__new__(Value)
    part.elements, part.itemsize, part.node, part.storage = elements, g.itemsize, None, g.storage
    return part

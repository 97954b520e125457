"""Linear layers with LoRA as functions of our own, in sizes: `speed/lora_linear.py`, `qkv.py` and `gated_mlp.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hf_peft_recipes.plan.linear_sizes import LinearSizes
from hf_peft_recipes.plan.operations import Operations
from hf_peft_recipes.plan.sizes import FLOAT32, Node, Value


class OwnLinears(Operations):
    """Walks layers that keep what the way back needs, and nothing else."""

    _buffer: Value | None = None
    """In which a GPU makes weights in 4 bits whole."""

    def own_linears(self, x: Value, linears: Sequence[LinearSizes]) -> list[Value]:
        """Return the outputs of `LoraLinear`, `speed/lora_linear.py`: of one layer, or several that read one input."""
        width, elements, itemsize = self._width(x, linears[0]), x.elements, x.itemsize
        drops = linears[0].dropout
        read = self.dropout(x) if drops else x
        outs, inner = self._forth(x, read, linears, width)
        x_needs = x.node is not None

        def backward(given: list[Value], _kept: Any = (read, inner)) -> list[Value | None]:
            given[:] = [self._flat(g, width) for g in given]
            by_adapters, _by_inner = self._back(given, self._flat(_kept[0], width), linears, width)
            by_x = self._flat(self._by_input(elements, linears, width), itemsize) if x_needs else None
            by_read = [self.fresh(elements, itemsize)] if drops else []
            return [by_x, *by_read, *by_adapters]

        factors = [factor for linear in linears for factor in linear.factors]
        self._as(outs, [x, *([read] if drops else []), *factors], backward, [read, inner])
        return [self._as_base(out, linear, itemsize) for out, linear in zip(outs, linears, strict=True)]

    def own_mlp(self, x: Value, gate: LinearSizes, up: LinearSizes, down: LinearSizes, recomputes: bool) -> Value:
        """Return the output of `GatedMlp`, `speed/gated_mlp.py`, which may make anew what is of the inner width."""
        width, elements, itemsize = self._width(x, gate), x.elements, x.itemsize
        first, last = (gate, up), (down,)
        rows = self._flat(x, width)
        (gated, upped), inner = self._forth(rows, rows, first, width)
        inside = gated.elements
        product = self.fresh(inside, width)
        outs, down_inner = self._forth(product, product, last, width)
        del product
        inside_kept = () if recomputes else (gated, upped, inner)
        x_needs, kept = x.node is not None, (rows, down_inner, *inside_kept)
        del rows, gated, upped, inner, down_inner, inside_kept

        def backward(given: list[Value], _kept: Any = kept) -> list[Value | None]:
            given[:] = [self._flat(g, width) for g in given]
            again = self._forth(_kept[0], _kept[0], first, width) if recomputes else None
            activated, product = self.fresh(inside, width), self.fresh(inside, width)
            by_last, _by_inner = self._back(given, product, last, width)
            del product
            by_product = self._by_input(inside, last, width)
            by_gate = self.fresh(inside, width)
            del by_product
            by_first, _by_inner = self._back([by_gate, activated], None, first, width)
            by_x = self._flat(self._by_input(elements, first, width), itemsize) if x_needs else None
            del again
            return [by_x, *by_first, *by_last]

        self._as(outs, [x, *gate.factors, *up.factors, *down.factors], backward, kept)
        return self._as_base(outs[0], down, itemsize)

    def _as_base(self, out: Value, linear: LinearSizes, itemsize: int) -> Value:
        """Return an output as precise as the base's own would be: one in 4 bits gives back what it was given."""
        given: Value = self.cast(out, itemsize) if linear.bits == 4 else out
        return given

    def _as(self, outs: Sequence[Value], parents: Any, backward: Any, saved: Any) -> None:
        """Give values that are made already one way back: it runs when the gradients of all have come."""
        given: list[Any] = [None] * len(outs)
        made = self.make(0, outs[0].itemsize, parents, lambda _: backward(given), saved)
        if made.node is None:
            return

        def collect(at: int) -> Callable[[Value], Sequence[Value]]:
            def into(gradient: Value) -> list[Value]:
                given[at] = gradient
                return [self.fresh(0, gradient.itemsize)]

            return into

        for at, out in enumerate(outs):
            out.node = Node(self.ledger, [made], collect(at))

    def _flat(self, x: Value, itemsize: int) -> Value:
        return x if x.itemsize == itemsize else self.fresh(x.elements, itemsize)

    def _whole(self, linear: LinearSizes, width: int) -> Any:
        """Return the weight that a product is made with, `Way.weight`."""
        if linear.float8:
            return self._float8_whole(linear, width)
        weight, size = linear.weight, linear.inputs * linear.outputs
        if linear.bits == 4 and self.kind == "cuda":
            # One buffer for all weights, which stays: `speed/nf4.py`.
            if self._buffer is None or self._buffer.elements < size:
                self._buffer = None
                with self.ledger.making("dequantization"):
                    self._buffer = self.fresh(size, width)
            return self._buffer
        if linear.bits == 4:
            return self._four_bit_whole(linear, width)
        return weight if weight.itemsize == width else self.fresh(weight.elements, width)

    def _forth(self, x: Value, read: Value, linears: Sequence[LinearSizes], width: int) -> tuple[list[Value], Value]:
        """Return the outputs and what the adapters' A make of the input: `forth` of `speed/lora_products.py`."""
        tokens, outs = x.elements // linears[0].inputs, []
        given = self._flat(x, width)
        some = given if read is x else self._flat(read, width)
        inner = self.fresh(tokens * sum(linear.rank for linear in linears), width)
        del some
        for linear in linears:
            weight = self._whole(linear, width)
            outs.append(self.fresh(tokens * linear.outputs, width))
            del weight
            self._scaled(linear)
        del given
        return outs, inner

    def _back(
        self, gradients: Sequence[Value], read: Any, linears: Sequence[LinearSizes], width: int
    ) -> tuple[list[Value], Value]:
        """Return the gradients by A and B of each, and that by what A made: `back` of `speed/lora_products.py`."""
        tokens = gradients[0].elements // linears[0].outputs
        by_b = []
        for linear in linears:
            self._scaled(linear)
            by_b.append(self._factor(linear, 1, width))
        by_inner = self.fresh(tokens * sum(linear.rank for linear in linears), width)
        by_a = [self._factor(linear, 0, width) for linear in linears]
        return [made for pair in zip(by_a, by_b, strict=True) for made in pair], by_inner

    def _factor(self, linear: LinearSizes, number: int, width: int) -> Value:
        """Return the gradient by A or by B."""
        factor = linear.factors[number]
        return self._flat(self.fresh(factor.elements, width), factor.itemsize)

    def _scaled(self, linear: LinearSizes) -> None:
        """Make B times the scaling, for one product."""
        self.ledger.spike("workspace", linear.factors[1].elements * linear.factors[1].itemsize)

    def _by_input(self, elements: int, linears: Sequence[LinearSizes], width: int) -> Value:
        """Return the gradient by the input: `by_input` of `speed/lora_products.py`."""
        weight = self._whole(linears[0], width)
        made = self.fresh(elements, width)
        del weight
        for linear in linears[1:]:
            self._whole(linear, width)
        return made

    def dropout(self, x: Value) -> Value:
        """Return `x` with some of it zeroed: a GPU keeps a byte an element, elsewhere the factors are kept whole."""
        elements, itemsize = x.elements, x.itemsize
        kept = self.fresh(elements, 1 if self.kind == "cuda" else itemsize)

        def backward(_: Value, _kept: Value = kept) -> list[Value | None]:
            return [self.fresh(elements, itemsize)]

        return self.make(elements, itemsize, [x], backward, [kept])

    def _width(self, x: Value, linear: LinearSizes) -> int:
        """Return the bytes of the numbers that a product is made in."""
        return self.autocast or linear.compute_bytes or x.itemsize

    def _four_bit_whole(self, linear: LinearSizes, width: int) -> Value:
        """Return a weight in 4 bits made whole, in half precision before any other."""
        with self.ledger.making("dequantization"):
            return self._flat(self.fresh(linear.inputs * linear.outputs, 2), width)

    def _float8_whole(self, linear: LinearSizes, *widths: int) -> Value:
        """Return a weight in 8-bit floats made whole: in float32, then in each of these, the one before beside it."""
        with self.ledger.making("dequantization"):
            weight = self.fresh(linear.inputs * linear.outputs, FLOAT32)
            for width in widths:
                weight = self._flat(weight, width)
        return weight

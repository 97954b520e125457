"""Linear layers in sizes, with what a quantised weight and an adapter make of them.

After `torch.nn.functional.linear` under autocast; bitsandbytes' `autograd/_functions.py`; `peft/tuners/lora/layer.py`,
`bnb.py` and `dora.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.plan.operations import Operations
from hf_peft_recipes.plan.sizes import FLOAT32, Node, Value, Weight


@dataclass(slots=True)
class LinearSizes:
    """One linear layer with what an adapter adds to it."""

    inputs: int
    outputs: int
    weight: Any
    """A `Weight`, or the value that was made of one."""
    bias: Weight | None = None
    bits: int = 0
    """4 or 8 where bitsandbytes quantised the weight."""
    lora: tuple[Weight, Weight] | None = None
    dropout: bool = False
    magnitude: Weight | None = None
    """DoRA's."""
    float8: bool = False
    """Whether the weight is in 8-bit floats."""
    compute_bytes: int | None = None
    """Of the numbers that a weight in 4 bits is multiplied in, whatever the input's; autocast decides before it."""

    @property
    def quantized(self) -> bool:
        """Whether the weight is made whole for its product."""
        return bool(self.bits) or self.float8

    @property
    def factors(self) -> tuple[Weight, Weight]:
        """LoRA's A and B, where there is LoRA."""
        assert self.lora is not None
        return self.lora

    @property
    def rank(self) -> int:
        """Of LoRA."""
        return self.factors[0].elements // self.inputs

    def added(self) -> list[Weight]:
        """Return what the adapter has of its own."""
        return [*(self.lora or ()), *([] if self.magnitude is None else [self.magnitude])]


class Walk(Operations):
    """Walks a step's operations, linear layers among them."""

    own_lora = False
    """Whether plain LoRA layers are functions of our own, `speed/lora_linear.py`."""
    _buffer: Value | None = None
    """In which a GPU makes weights in 4 bits whole."""

    def product(self, x: Value, linear: LinearSizes) -> Value:
        """Return `x` times a weight, in autocast's precision."""
        rows = x.elements // linear.inputs
        if linear.bits == 8:
            return self._product_8bit(x, linear, rows)
        if linear.float8:
            return self._product_float8(x, linear, rows)
        if linear.bits == 4:
            return self._product_4bit(x, linear, rows)
        x = self.cast(x, self.autocast) if self.autocast else x
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

    def _width(self, x: Value, linear: LinearSizes) -> int:
        """Return the bytes of the numbers that a product is made in."""
        return self.autocast or linear.compute_bytes or x.itemsize

    def _product_4bit(self, x: Value, linear: LinearSizes, rows: int) -> Value:
        """Return the product of bitsandbytes' `Linear4bit`, which gives back the precision that it was given."""
        given = x.itemsize
        x = self.cast(x, self._width(x, linear))
        itemsize, elements = x.itemsize, x.elements

        def backward(g: Value) -> list[Value]:
            weight = self._four_bit_whole(linear, itemsize)
            made = self.fresh(elements, itemsize)
            del weight
            return [made]

        weight = self._four_bit_whole(linear, itemsize)
        out = self.make(rows * linear.outputs, itemsize, [x], backward)
        del weight
        return self.cast(out, given)

    def _four_bit_whole(self, linear: LinearSizes, width: int) -> Value:
        """Return a weight in 4 bits made whole, in half precision before any other."""
        with self.ledger.making("dequantization"):
            return self._flat(self.fresh(linear.inputs * linear.outputs, 2), width)

    def _product_float8(self, x: Value, linear: LinearSizes, rows: int) -> Value:
        """Return the product of `float8.Product`, which keeps nothing but the input's dtype."""
        elements, itemsize = x.elements, x.itemsize
        width = self.autocast or itemsize
        given = self._flat(x, width)
        weight = self._float8_whole(linear, linear.weight.itemsize, width)

        def backward(g: Value) -> list[Value | None]:
            weight = self._float8_whole(linear, g.itemsize, g.itemsize)
            made = self.fresh(elements, g.itemsize)
            del weight
            return [self._flat(made, itemsize)]

        out = self.make(rows * linear.outputs, width, [x], backward)
        del given, weight
        return out if linear.bias is None else self.unary(out)

    def _float8_whole(self, linear: LinearSizes, *widths: int) -> Value:
        """Return a weight in 8-bit floats made whole: in float32, then in each of these, the one before beside it."""
        with self.ledger.making("dequantization"):
            weight = self.fresh(linear.inputs * linear.outputs, FLOAT32)
            for width in widths:
                weight = self._flat(weight, width)
        return weight

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
        if self.own_lora and linear.lora is not None:
            return self.own_linears(x, [linear])[0]
        result = self.product(x, linear)
        if linear.lora is None:
            return result
        itemsize = result.itemsize
        if linear.bits == 4:
            result = self.unary(result)  # peft clones it
        # peft/tuners/lora/bnb.py asks for the GPU's autocast; elsewhere x goes to the adapter's precision, and back.
        converts = not (linear.bits and self.kind == "cuda" and self.autocast)
        if converts:
            x = self.cast(x, linear.lora[0].itemsize)
        if linear.magnitude is not None:
            return self.cast(self.add(result, self._scaled_by_magnitude(x, result, linear)), itemsize)
        wide = self._low_rank(self.dropout(x) if linear.dropout else x, linear)
        scaled = self.unary(wide)
        del wide
        if linear.bits and converts:
            scaled = self.cast(scaled, itemsize)
        return self.cast(self.add(result, scaled), itemsize)

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

    def _low_rank(self, x: Value, linear: LinearSizes) -> Value:
        down, up = linear.factors
        low = self.product(x, LinearSizes(linear.inputs, linear.rank, down))
        return self.product(low, LinearSizes(linear.rank, linear.outputs, up))

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

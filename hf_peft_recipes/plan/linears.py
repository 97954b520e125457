"""Linear layers in sizes, with what a quantised weight and an adapter make of them.

After `torch.nn.functional.linear` under autocast; bitsandbytes' `autograd/_functions.py`; `peft/tuners/lora/layer.py`,
`bnb.py` and `dora.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.plan.operations import Operations
from hf_peft_recipes.plan.sizes import FLOAT32, Value, Weight


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

    @property
    def quantized(self) -> bool:
        """Whether the weight is made whole for its product."""
        return bool(self.bits) or self.float8

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
            return self._own_linear(x, linear)
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

    def _own_linear(self, x: Value, linear: LinearSizes) -> Value:
        """Return the output of `LoraLinear`, `speed/lora_linear.py`."""
        assert linear.lora is not None
        width, elements, itemsize = self.autocast or x.itemsize, x.elements, x.itemsize
        read = self.dropout(x) if linear.dropout else x
        out, inner = self._forth(x, read, linear, width)
        x_needs, drops = x.node is not None, linear.dropout

        def backward(g: Value, _kept: Any = (read, inner)) -> list[Value | None]:
            g = self._flat(g, width)
            back = self._back(g, self._flat(_kept[0], width), linear, width)
            by_x = self._flat(self._by_input(elements, linear, width), itemsize) if x_needs else None
            by_read = [self.fresh(elements, itemsize)] if drops else []
            return [by_x, *by_read, *back[:2]]

        parents: list[Value | Weight] = [x, *([read] if drops else []), *linear.lora]
        return self._as(out, parents, backward, [read, inner])

    def own_mlp(self, x: Value, gate: LinearSizes, up: LinearSizes, down: LinearSizes, recomputes: bool) -> Value:
        """Return the output of `GatedMlp`, `speed/gated_mlp.py`, which may make anew what is of the inner width."""
        assert gate.lora and up.lora and down.lora
        width, elements, itemsize = self.autocast or x.itemsize, x.elements, x.itemsize
        rows = self._flat(x, width)
        gated, gate_inner = self._forth(rows, rows, gate, width)
        upped, up_inner = self._forth(rows, rows, up, width)
        inside = gated.elements
        product = self.fresh(inside, width)
        out, down_inner = self._forth(product, product, down, width)
        del product
        inside_kept = () if recomputes else (gated, upped, gate_inner, up_inner)
        x_needs, kept = x.node is not None, (rows, down_inner, *inside_kept)
        del rows, gated, upped, gate_inner, up_inner, down_inner, inside_kept

        def backward(g: Value, _kept: Any = kept) -> list[Value | None]:
            g = self._flat(g, width)
            again = [self._forth(_kept[0], _kept[0], part, width) for part in (gate, up)] if recomputes else []
            activated, product = self.fresh(inside, width), self.fresh(inside, width)
            by_down = self._back(g, product, down, width)
            del product
            by_product = self._by_input(inside, down, width)
            by_gate_out = self.fresh(inside, width)
            del by_product
            by_gate = self._back(by_gate_out, None, gate, width)
            by_up = self._back(activated, None, up, width)
            by_x = None
            if x_needs:
                by_x = self._by_input(elements, gate, width)
                # The other part is added to it.
                self._whole(up, width)
                by_x = self._flat(by_x, itemsize)
            del again
            return [by_x, *by_gate[:2], *by_up[:2], *by_down[:2]]

        return self._as(out, [x, *gate.lora, *up.lora, *down.lora], backward, kept)

    def _as(self, out: Value, parents: Any, backward: Any, saved: Any) -> Value:
        """Return a value that is made already, with its way back."""
        made = self.make(0, out.itemsize, parents, backward, saved)
        out.node = made.node
        return out

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
            with self.ledger.making("dequantization"):
                weight = self.fresh(size, 2)
                return self._flat(weight, width)
        return weight if weight.itemsize == width else self.fresh(weight.elements, width)

    def _forth(self, x: Value, read: Value, linear: LinearSizes, width: int) -> tuple[Value, Value]:
        """Return the output and the adapter's inner state, `Way.forth`."""
        assert linear.lora is not None
        down, up = linear.lora
        tokens = x.elements // linear.inputs
        given = self._flat(x, width)
        some = given if read is x else self._flat(read, width)
        weight = self._whole(linear, width)
        out = self.fresh(tokens * linear.outputs, width)
        inner = self.fresh(tokens * (down.elements // linear.inputs), width)
        scaled = self.fresh(up.elements, up.itemsize)
        del given, some, weight, scaled
        return out, inner

    def _back(self, g: Value, read: Any, linear: LinearSizes, width: int) -> tuple[Value, Value, Value]:
        """Return the gradients by A, by B and by the inner state, `Way.back`."""
        assert linear.lora is not None
        down, up = linear.lora
        tokens = g.elements // linear.outputs
        by_inner = self.fresh(tokens * (down.elements // linear.inputs), width)
        by_a = self.fresh(down.elements, width)
        by_a = self._flat(by_a, down.itemsize)
        by_b = self.fresh(up.elements, width)
        return by_a, self._flat(by_b, up.itemsize), by_inner

    def _by_input(self, elements: int, linear: LinearSizes, width: int) -> Value:
        """Return the gradient by the input, `Way.by_input`."""
        weight = self._whole(linear, width)
        made = self.fresh(elements, width)
        del weight
        return made

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

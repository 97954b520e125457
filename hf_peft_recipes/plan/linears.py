"""Linear layers in sizes, with what a quantised weight and an adapter make of them.

After `torch.nn.functional.linear` under autocast; bitsandbytes' `autograd/_functions.py`; `peft/tuners/lora/layer.py`,
`bnb.py` and `dora.py`.
"""

from __future__ import annotations

from typing import Any

from hf_peft_recipes.plan.linear_sizes import LinearSizes
from hf_peft_recipes.plan.own_linears import OwnLinears
from hf_peft_recipes.plan.sizes import FLOAT32, Value, Weight


class Walk(OwnLinears):
    """Walks a step's operations, linear layers among them."""

    own_lora = False
    """Whether plain LoRA layers are functions of our own, `speed/lora_linear.py`."""

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

"""The weights of a base with its adapter, as a step meets them."""

from __future__ import annotations

from collections import Counter

from hf_peft_recipes.plan.job import Job
from hf_peft_recipes.plan.linear_sizes import LinearSizes
from hf_peft_recipes.plan.shapes import Shape, Tensor
from hf_peft_recipes.plan.sizes import FLOAT32, Weight


class Model:
    """The weights of a base with its adapter, as a step meets them."""

    def __init__(self, job: Job, shape: Shape) -> None:
        self.job, self.shape = job, shape
        self.bytes: Counter[str] = Counter()
        self.trained: list[int] = []
        """Elements of every trained tensor."""
        self.weights: dict[str, Weight] = {}
        self.linears: dict[str, LinearSizes] = {}
        adapter = job.adapter or {}
        rank = int(adapter.get("r") or 8)
        dropout, whole = bool(adapter.get("lora_dropout")), set(adapter.get("modules_to_save") or ())
        for tensor in shape.tensors():
            self._hold(tensor)
            if not (tensor.linear or tensor.stacked):
                continue
            module = tensor.name.removesuffix(".weight")
            lora = None
            if job.adapts(tensor):
                # One A and one B for every weight that is stacked.
                own = rank * tensor.ranks
                sizes = (own * max(1, tensor.stacked) * tensor.columns, own * tensor.rows)
                lora = (self._trained(sizes[0], FLOAT32), self._trained(sizes[1], FLOAT32))
                self.bytes["adapters"] += sum(sizes) * FLOAT32
            bits = job.bits if job.quantizes(tensor) else 0
            linear = LinearSizes(tensor.columns, tensor.rows, self.weights[tensor.name], None, bits, lora, dropout)
            if bits == 4:
                linear.compute_bytes = job.four_bit_bytes
            if bits and job.float8:
                linear.bits, linear.float8 = 0, True
            if lora and adapter.get("use_dora"):
                linear.magnitude = self._trained(tensor.rows, FLOAT32)
                self.bytes["adapters"] += tensor.rows * FLOAT32
            self.linears[module] = linear
        if job.extra_elements:
            self.bytes["weights"] += job.extra_elements * job.item_bytes
        if job.weight_bytes is not None:
            self.bytes["weights"], self.bytes["weights_quantized"] = 0, job.weight_bytes
        for name, weight in self.weights.items():
            if name.endswith(".bias") and name.removesuffix(".bias") in self.linears:
                self.linears[name.removesuffix(".bias")].bias = weight
        embedding = self.weights["model.embed_tokens.weight"]
        # Untied or not, the head is one product; a tied one has the embedding's weight.
        head = self.weights.get("lm_head.weight", embedding)
        # PEFT trains a copy in float32, and parts what is tied.
        if "embed_tokens" in whole:
            self.weights["model.embed_tokens.weight"] = self._copied(embedding)
        if "lm_head" in whole:
            head = self.weights["lm_head.weight"] = self._copied(head)
        self.head = LinearSizes(shape.hidden, shape.vocabulary, head)

    def _copied(self, weight: Weight) -> Weight:
        self.bytes["adapters"] += weight.elements * FLOAT32
        return self._trained(weight.elements, FLOAT32)

    def _hold(self, tensor: Tensor) -> None:
        job = self.job
        if job.quantizes(tensor):
            self.bytes["weights_quantized"] += job.quantized_bytes(tensor)
            self.weights[tensor.name] = Weight(tensor.elements, job.item_bytes, False)
            return
        self.bytes["weights"] += tensor.elements * job.item_bytes
        trains = job.adapter is None
        self.weights[tensor.name] = (
            self._trained(tensor.elements, job.item_bytes) if trains else Weight(tensor.elements, job.item_bytes, False)
        )

    def _trained(self, elements: int, itemsize: int) -> Weight:
        self.trained.append(elements)
        return Weight(elements, itemsize, True)

    @property
    def trained_item_bytes(self) -> int:
        """Bytes of an element of what trains: adapters are float32, a whole model as it was loaded."""
        return FLOAT32 if self.job.adapter else self.job.item_bytes

    @property
    def gradient_bytes(self) -> int:
        """What the gradients take together."""
        return sum(self.trained) * self.trained_item_bytes

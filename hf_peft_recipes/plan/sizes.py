"""Tensors without content: operations walked through in sizes alone, with what autograd keeps for the way back.

A value lives as long as something holds it, as in torch: a variable of the code that walks, a node that saved it, a
buffer of the backward pass. So the code that walks a layer, written as the layer is, meets the layer's own peak. What
each operation saves and makes is torch's `derivatives.yaml`; when a node runs and lets go of what it saved is the
rule of torch's engine (`torch/csrc/autograd/engine.cpp`): the latest ready node first.
"""

from __future__ import annotations

import gc
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

FLOAT32 = 4


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from walking through the block's values: they die as their last holder lets go."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass
class Stage:
    """One stretch of a walk: what was alive at its beginning, and at its peak."""

    start_parts: dict[str, int]
    start_made_bytes: int
    peak_bytes: int = 0
    peak_parts: dict[str, int] = field(default_factory=dict)
    kept_bytes: int = 0
    """What nodes hold that let go of it only when the way back is over."""


class Ledger:
    """The bytes alive, by part, and the parts of the highest sum of every stage."""

    def __init__(self) -> None:
        self.parts: defaultdict[str, int] = defaultdict(int)
        self.live_bytes = 0
        self.made_bytes = 0
        """All that operations made, alive or gone."""
        self.part = "workspace"
        """What is made now counts as this."""
        self.recording = True
        """Whether autograd records: not within a checkpointed block's first pass, nor in evaluation."""
        self.pinned: list[Value] | None = None
        """What contexts hold on to in a checkpointed block's first pass, where nothing else is kept."""
        self.numbers = 0
        """Of operations so far."""
        self.stages = [Stage({}, 0)]
        self.marks: list[int] = []
        """The number of operations at each stage of the way forward: the way back passes them again."""
        self.peak_bytes = 0
        """Of this stage."""
        self.at_peak = False
        """Whether what is alive now is this stage's peak."""

    @contextmanager
    def making(self, part: str) -> Iterator[None]:
        """Count what the block makes as `part`."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    @contextmanager
    def not_recording(self) -> Iterator[None]:
        """Let the block record nothing for a way back."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    def add(self, part: str, size_bytes: int) -> None:
        """Count bytes that begin to live."""
        self.parts[part] += size_bytes
        self.live_bytes += size_bytes
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self.at_peak = self.live_bytes, True

    def remove(self, part: str, size_bytes: int) -> None:
        """Count bytes that cease to live."""
        if self.at_peak:
            self.leave_peak()
        self.parts[part] -= size_bytes
        self.live_bytes -= size_bytes

    def spike(self, part: str, size_bytes: int) -> None:
        """Count bytes that live within one operation only."""
        self.made_bytes += size_bytes
        self.add(part, size_bytes)
        self.remove(part, size_bytes)

    def leave_peak(self) -> None:
        """Keep the parts of the peak: only when something goes is it known to be one."""
        stage = self.stages[-1]
        stage.peak_bytes, stage.peak_parts, self.at_peak = self.peak_bytes, dict(self.parts), False

    def mark(self) -> None:
        """Begin a stage of the way forward."""
        self.marks.append(self.numbers)
        self.begin_stage()

    def pass_marks(self, number: int) -> None:
        """Begin the stage of the way back that the operation `number` belongs to."""
        while self.marks and number <= self.marks[-1]:
            self.marks.pop()
            self.begin_stage()

    def begin_stage(self) -> None:
        """Keep the peak of what has been, and begin another."""
        if self.at_peak:
            self.leave_peak()
        self.stages.append(Stage(dict(self.parts), self.made_bytes))
        self.peak_bytes, self.at_peak = self.live_bytes, True

    def close(self) -> Stage:
        """Return the stage with the highest peak, now that the walk is over."""
        if self.at_peak:
            self.leave_peak()
        return max(self.stages, key=lambda stage: stage.peak_bytes)


class Storage:
    """Memory that one or more values look at."""

    __slots__ = ("is_kept", "ledger", "part", "size_bytes")

    def __init__(self, ledger: Ledger, size_bytes: int) -> None:
        self.ledger, self.size_bytes, self.is_kept = ledger, size_bytes, False
        self.part = part = ledger.part
        ledger.made_bytes += size_bytes
        # `Ledger.add`, and below `Ledger.remove`, without the call: a plan makes ten thousands of these.
        ledger.parts[part] += size_bytes
        ledger.live_bytes = live = ledger.live_bytes + size_bytes
        if live > ledger.peak_bytes:
            ledger.peak_bytes, ledger.at_peak = live, True

    def move(self, part: str) -> None:
        """Count the memory as `part` from now on, unless it stands for something already."""
        if self.part == "workspace":
            self.ledger.parts[self.part] -= self.size_bytes
            self.ledger.parts[part] += self.size_bytes
            self.part = part

    def __del__(self) -> None:
        ledger = self.ledger
        if ledger.at_peak:
            ledger.leave_peak()
        ledger.parts[self.part] -= self.size_bytes
        ledger.live_bytes -= self.size_bytes


Backward = Callable[["Value"], Sequence["Value | None"]]


class Node:
    """One operation on the way back: it lets go of what it saved once it has run."""

    __slots__ = ("backward", "kept", "number", "parents")

    def __init__(self, ledger: Ledger, parents: Sequence[Value | Weight], backward: Backward | None) -> None:
        ledger.numbers += 1
        self.number = ledger.numbers
        self.parents = [parent.node for parent in parents]
        self.backward = backward
        self.kept: Sequence[Value] = ()

    def keep(self, values: Sequence[Value]) -> None:
        """Hold on to values as an attribute of a `Function`'s context does: longer than what is saved for backward."""
        self.kept = values
        for storage in (value.storage for value in values):
            storage.move("activations")
            if not storage.is_kept:
                storage.is_kept = True
                storage.ledger.stages[-1].kept_bytes += storage.size_bytes

    def receive(self, gradient: Value) -> bool:
        """Return whether the gradient ends here, as it does at a weight."""
        return False


class Value:
    """What a torch tensor is, without its content."""

    __slots__ = ("elements", "itemsize", "node", "storage")

    def __init__(self, ledger: Ledger, elements: int, itemsize: int, node: Node | None = None) -> None:
        self.elements, self.itemsize, self.node = elements, itemsize, node
        self.storage = Storage(ledger, elements * itemsize)

    @property
    def size_bytes(self) -> int:
        """Its elements in bytes."""
        return self.elements * self.itemsize


class _Accumulator(Node):
    """Where a gradient meets its weight: the first one stays, later ones are added to it and go."""

    __slots__ = ("weight",)

    def __init__(self, weight: Weight) -> None:
        self.weight, self.parents, self.backward, self.number = weight, [], None, -1

    def receive(self, gradient: Value) -> bool:
        if self.weight.gradient is None:
            gradient.storage.move("gradients")
            self.weight.gradient = gradient
        return True


class Weight:
    """A tensor of the model, counted elsewhere; trained ones collect a gradient."""

    __slots__ = ("elements", "gradient", "itemsize", "node")

    def __init__(self, elements: int, itemsize: int, trains: bool) -> None:
        self.elements, self.itemsize = elements, itemsize
        self.gradient: Value | None = None
        self.node: Node | None = _Accumulator(self) if trains else None


def run_backward(ledger: Ledger, root: Node | None, gradient: Value, into: Node | None = None) -> Value | None:
    """Walk the way back from `root`; return the gradient that arrives at `into`, if that is given.

    Args:
        ledger: that counts.
        root: the node of what is differentiated.
        gradient: of that.
        into: a leaf, as the input of a checkpointed block is.
    """
    buffers: dict[Node, Value] = {}
    ready: list[tuple[int, Node]] = []
    arrived: Value | None = None
    marks = ledger.marks
    if root is not None:
        buffers[root] = gradient
        ready.append((-root.number, root))
    del gradient
    while ready:
        node = heapq.heappop(ready)[1]
        if marks and node.number <= marks[-1]:
            ledger.pass_marks(node.number)
        given = buffers.pop(node)
        backward, node.backward = node.backward, None
        gradients = list(backward(given)) if backward else []
        del given, backward
        for position, parent in enumerate(node.parents):
            made, gradients[position] = gradients[position], None
            if parent is None or made is None or parent.receive(made):
                continue
            if parent is into:
                # Several uses of a block's input: the second is added in place.
                arrived = arrived or made
            elif parent in buffers:
                # The engine adds in place where nothing else looks at the buffer.
                if buffers[parent].storage is made.storage:
                    buffers[parent] = Value(ledger, made.elements, made.itemsize)
            else:
                buffers[parent] = made
                heapq.heappush(ready, (-parent.number, parent))
        # A gradient that was added to another one is gone before the next operation.
        made = None
        del node
    return arrived

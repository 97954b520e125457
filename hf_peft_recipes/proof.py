"""The proof that training trained: trainable tensors had gradients and moved, frozen ones did not.

Some methods run without an error and train nothing: IA3 and layer-norm tuning on an NF4 base, adapters whose steps are
smaller than their dtype can hold. A tensor is proved when it has had a gradient other than zero and its value has
changed; that gradients are finite is seen to by `finite`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_peft_recipes.errors import NotTrainedError
from hf_peft_recipes.float8 import stored_parts
from hf_peft_recipes.sharding import is_split, let_go, local, size

UPDATES_TO_JUDGE = 3
"""LoRA's A cannot move at the first update, B being zero; it has its first gradient at the second."""

LEGITIMATELY_ZERO = {
    "expert": "an expert learns only once the router sends it a token",
    "embed": "an embedding learns only from the tokens that occur",
}
"""Part of a tensor's name to the reason why its gradient may be zero for a while, or for all of a short run."""

FROZEN_SAMPLES = 16
_SAMPLED_ELEMENTS = 1 << 20
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TrainingProof(TrainerCallback, ExportableState):
    """Watches a run's first updates and raises NotTrainedError when a tensor does not train, or a frozen one moves.

    `result()` gives the account afterwards.
    """

    def __init__(
        self, waits: bool = False, concludes: bool = True, leaves_out: Callable[[int], bool] = lambda _: False
    ) -> None:
        """Args:
        waits: whether an update without any gradient is no fault: where all answers to a prompt had the same reward,
            there is nothing to learn. Such updates are none to judge by; a run of them alone did not train.
        concludes: whether the end of training is one to judge by, which that of a dry run is not.
        leaves_out: whether an optimizer step, counted from 1, is taken without a gradient on purpose.
        """
        self._leaves_out = leaves_out
        self._concludes = concludes
        self._waits = waits
        self.empty_updates = 0
        """Updates without any gradient, where those are no fault."""
        self.unproved: dict[str, str] = {}
        """Trainable tensors without proof so far, each with what is missing."""
        self.excused: set[str] = set()
        """Tensors that the method itself has put out of use: AdaLoRA takes all ranks from some matrices."""
        self.proved_before: list[str] = []
        """Tensors that were proved before the checkpoint that the run goes on from."""
        self._start: dict[str, int] = {}
        self._frozen: dict[str, int] = {}
        self._had_gradient: set[str] = set()
        self._updates = 0
        self.judged = False
        """Whether it was time to judge, and nothing was found wanting."""
        self._trainable = 0
        self._split = self._steps_inside = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Take the checksums of all trainable and of some frozen tensors; of what goes on, those of its beginning."""
        let_go(model)
        if self._start:
            # Updates that are made once more from an earlier state prove no more than they did.
            self._updates = 0
            return
        # A matrix of rank 0, as AdaLoRA leaves some, has nothing to train.
        trainable = {name: one for name, one in model.named_parameters() if one.requires_grad and size(one)}
        if not trainable:
            raise NotTrainedError("nothing in the model is trainable")
        frozen = [(name, tensor) for name, tensor in model.named_parameters() if not tensor.requires_grad]
        every = max(1, math.ceil(len(frozen) / FROZEN_SAMPLES))
        self._trainable = len(trainable)
        self._split, self._steps_inside = is_split(model), getattr(args, "deepspeed_plugin", None) is not None
        self._start = {name: checksum(tensor) for name, tensor in trainable.items()}
        self._frozen = {name: checksum(tensor, _SAMPLED_ELEMENTS) for name, tensor in frozen[::every]}
        self.unproved = dict.fromkeys((name for name in trainable if name not in self.proved_before), "no update yet")

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, lr_scheduler: Any = None, **_: Any
    ) -> None:
        """Note which tensors have a gradient, while there are tensors to prove."""
        if not self.unproved or self._leaves_out(state.global_step + 1):
            return
        if self._waits and not any(
            tensor.grad is not None and bool(local(tensor.grad).any()) for tensor in model.parameters()
        ):
            self.empty_updates += 1
            return
        # A warm-up begins at rate 0, where nothing can move.
        self._updates += 1 if lr_scheduler is None or max(lr_scheduler.get_last_lr()) > 0 else 0
        for name, tensor in model.named_parameters():
            if name not in self.unproved:
                continue
            if self._steps_inside:
                # DeepSpeed has taken the step by now, and keeps gradients to itself: what moves had one.
                self._had_gradient.add(name)
                self.unproved[name] = "its value does not change"
                continue
            gradient = None if tensor.grad is None else local(tensor.grad)
            if gradient is None:
                self.unproved[name] = "no gradient: it takes no part in the loss"
            elif bool(gradient.any()):
                self._had_gradient.add(name)
                self.unproved[name] = "its gradient is not zero, but its value does not change"
            elif name not in self._had_gradient:
                self.unproved[name] = "its gradient is zero"

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Strike off the tensors that moved; judge the others after three updates with a rate above zero."""
        if not self.unproved:
            return
        for name, tensor in model.named_parameters():
            if name in self._had_gradient and name in self.unproved and checksum(tensor) != self._start[name]:
                del self.unproved[name]
        if self._split:
            self._share()
        if self._updates >= UPDATES_TO_JUDGE and not self.judged:
            self.judged = True
            self._judge()

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Compare the frozen tensors with what they were; a run that waited for a gradient in vain did not train."""
        if self._concludes and self.empty_updates and not self._had_gradient:
            raise NotTrainedError(
                f"nothing was learned: in all {self.empty_updates} updates every gradient was zero, since all answers "
                "to a prompt had the same reward; easier prompts, a gentler reward or a better base is wanted"
            )
        let_go(model)
        now = {name: tensor for name, tensor in model.named_parameters() if name in self._frozen}
        moved = [name for name, before in self._frozen.items() if checksum(now[name], _SAMPLED_ELEMENTS) != before]
        if moved:
            raise NotTrainedError(f"frozen weights changed during training: {', '.join(moved[:5])}")

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it, as upstream has it: what was proved needs no proof again."""
        proved = sorted(self._start.keys() - self.unproved.keys())
        kept = {"proved_before": proved, "judged": self.judged, "empty_updates": self.empty_updates}
        return {"args": {}, "attributes": kept}

    def result(self) -> dict[str, Any]:
        """Return the account for `result.json`."""
        return {
            "trainable_tensors": self._trainable,
            "proved_tensors": self._trainable - len(self.unproved),
            "unproved": dict(sorted(self.unproved.items())),
            "judged": self.judged or not self.unproved,
            "frozen_tensors_checked": len(self._frozen),
            **({"empty_updates": self.empty_updates} if self._waits else {}),
        }

    def _share(self) -> None:
        """Strike off what any process has proved of its part: others may hold rows that no token needs, or none."""
        proved = gather_object([name for name in self._start if name not in self.unproved])
        for name in proved:
            self.unproved.pop(name, None)

    def _judge(self) -> None:
        fatal = {
            name: why
            for name, why in self.unproved.items()
            if name not in self.excused
            and (why != "its gradient is zero" or not any(part in name for part in LEGITIMATELY_ZERO))
        }
        if fatal:
            listed = "; ".join(f"{name}: {why}" for name, why in list(fatal.items())[:5])
            more = f"; and {len(fatal) - 5} more" if len(fatal) > 5 else ""
            raise NotTrainedError(
                f"after {UPDATES_TO_JUDGE} updates {len(fatal)} of {self._trainable} trainable tensors do not train: "
                f"{listed}{more}"
            )


def checksum(tensor: torch.Tensor, elements: int | None = None) -> int:
    """Return a sum over the bits of the tensor's elements: another value means that some element changed.

    Args:
        tensor: of any dtype.
        elements: how many elements to look at, evenly spaced; None for all.
    """
    # Of a weight in 8-bit floats, its numbers.
    flat = stored_parts(local(tensor).detach())[0].reshape(-1)
    if elements is not None and flat.numel() > elements:
        flat = flat[:: flat.numel() // elements]
    bits = flat.view(_INTEGERS[flat.element_size()]) if flat.numel() else flat.to(torch.int64)
    return int(bits.sum(dtype=torch.int64))

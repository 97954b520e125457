"""Whether there is anything to learn from rewards: people most often trip over that there is not."""

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

_KEPT = ("batches", "groups", "telling", "warning")


class LearningSignal(TrainerCallback, ExportableState):
    """Whether rewards differ among the answers to a prompt: where they never do, there is nothing to learn."""

    WARNED_AFTER = 10
    """Batches of answers without a difference, from the start, after which it is said."""

    def __init__(self) -> None:
        self.batches = 0
        self.groups = 0
        self.telling = 0
        """Groups of answers to one prompt whose rewards differ."""
        self.warning: str | None = None

    def note(self, rewards: Any) -> str | None:
        """Take in the rewards of a batch; return a warning once, when it is time for one.

        Args:
            rewards: weighted sums, a tensor of shape (prompts, answers).
        """
        self.batches += 1
        self.groups += len(rewards)
        self.telling += int((rewards.max(1).values - rewards.min(1).values > 1e-8).sum())
        if self.telling or self.warning or self.batches < self.WARNED_AFTER:
            return None
        low, high = float(rewards.min()), float(rewards.max())
        values = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        self.warning = (
            f"no learning signal: in the first {self.batches} batches all answers to a prompt had the same reward "
            f"({values}); easier prompts, a gentler reward or a better base is wanted"
        )
        return self.warning

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it, as upstream has it."""
        return {"args": {}, "attributes": {name: getattr(self, name) for name in _KEPT}}

    def result(self) -> dict[str, Any]:
        """Return the account for `result.json`."""
        told = {} if self.warning is None else {"warning": self.warning}
        return {"batches": self.batches, "groups": self.groups, "groups_with_differences": self.telling, **told}

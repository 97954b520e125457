"""Rows of answers that are compared, padded to batches: labels say which tokens belong to an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_peft_recipes.data.rendering import IGNORED
from hf_peft_recipes.heads.padding import PADDED_TO

Batch = dict[str, torch.Tensor]


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Return the rows as one tensor of shape (rows, width), filled up with `value` on the right.

    The width is that of the longest, and then the next multiple of `PADDED_TO`.
    """
    width = -(-max(map(len, rows)) // PADDED_TO) * PADDED_TO
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


@dataclass(frozen=True)
class Collator:
    """Makes batches of sequences with the masks that upstream's losses read."""

    pad_token_id: int

    def sequences(self, ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], prefix: str = "") -> Batch:
        """Return ids, attention mask and completion mask, each of shape (rows, tokens).

        Args:
            ids: of each row.
            labels: of each row: the token's id where it belongs to the answer, -100 elsewhere.
            prefix: of the names in the batch.
        """
        return {
            f"{prefix}input_ids": padded(ids, self.pad_token_id),
            f"{prefix}attention_mask": padded([[1] * len(row) for row in ids], 0),
            f"{prefix}completion_mask": padded([[int(label != IGNORED) for label in row] for row in labels], 0),
        }


class PairCollator(Collator):
    """The wanted answers in the first half of the batch, the refused ones in the second, as DPO and rewards have it."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of some pairs."""
        both = [(row[f"{side}_input_ids"], row[f"{side}_labels"]) for side in ("chosen", "rejected") for row in rows]
        batch = self.sequences([ids for ids, _ in both], [labels for _, labels in both])
        logps = ("ref_chosen_logps", "ref_rejected_logps")
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in logps if name in rows[0]}


class SideCollator(Collator):
    """The two sides apart, with labels, as ORPO and CPO have it."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of some pairs."""
        batch: Batch = {}
        for side in ("chosen_", "rejected_"):
            ids, labels = ([row[f"{side}{name}"] for row in rows] for name in ("input_ids", "labels"))
            batch |= self.sequences(ids, labels, side)
            del batch[f"{side}completion_mask"]
            batch[f"{side}labels"] = padded(labels, IGNORED)
        return batch


class JudgedCollator(Collator):
    """Answers with their judgements, and, for KTO's estimate of the KL divergence, each prompt with the answer of the
    row before it in the batch (Ethayarajh et al. 2024, arXiv:2402.01306, section 4)."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of some judged answers."""
        ids, labels = ([row[name] for row in rows] for name in ("input_ids", "labels"))
        begins = [next(at for at, label in enumerate(row) if label != IGNORED) for row in labels]
        answers = [(row[at:], label[at:]) for row, label, at in zip(ids, labels, begins, strict=True)]
        others = answers[-1:] + answers[:-1]
        mixed = [row[:at] + other for row, at, (other, _) in zip(ids, begins, others, strict=True)]
        masks = [[IGNORED] * at + other for at, (_, other) in zip(begins, others, strict=True)]
        batch = self.sequences(ids, labels) | self.sequences(mixed, masks, "KL_")
        numbers = [name for name in ("label", "ref_logps", "ref_KL_logps") if name in rows[0]]
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in numbers}

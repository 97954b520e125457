"""The moments of a run at which a method can have something to do, and what it may look at."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_peft_recipes.data.rendering import IGNORED
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec import ResolvedRecipe


@dataclass(frozen=True)
class Material:
    """What a step may look at before training."""

    rows: Any
    """The training rows: a `datasets.Dataset` of tokens and labels; of pairs the wanted side is taken, of what the
    model answers itself the prompt."""
    tokenizer: Any
    seed: int
    model: Mapping[str, Any] | None
    """The recipe's section of that name: where the base's files are."""

    def sequences(self) -> Iterator[tuple[list[int], Any]]:
        """Yield token ids and labels of each training row once, in an order that the seed decides.

        The labels are one a token, -100 where it carries no loss; of a text that is labelled, its label's number.
        """
        known = self.rows.column_names
        side = next(name for name in ("input_ids", "chosen_input_ids", "prompt_ids") if name in known)
        labels = next((name for name in ("labels", "chosen_labels") if name in known), None)
        for index in random.Random(self.seed).sample(range(len(self.rows)), len(self.rows)):
            row = self.rows[index]
            yield row[side], row[labels] if labels else [IGNORED] * len(row[side])

    def batch(self, sequences: list[tuple[list[int], Any]], device: Any) -> dict[str, torch.Tensor]:
        """Return some sequences padded on the right: ids, attention mask and labels, each of shape (rows, longest).

        Labels of texts are of shape (rows,).
        """
        ids, labels = zip(*sequences, strict=True)
        columns: dict[str, Any] = {
            "input_ids": (ids, self.tokenizer.pad_token_id),
            "attention_mask": ([[1] * len(row) for row in ids], 0),
        }
        of_texts = isinstance(labels[0], int)
        if not of_texts:
            columns["labels"] = (labels, IGNORED)
        made = {
            name: torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row, device=device) for row in rows], batch_first=True, padding_value=fill
            )
            for name, (rows, fill) in columns.items()
        }
        return made | ({"labels": torch.tensor(labels, device=device)} if of_texts else {})


class Step:
    """What one method does; each moment is left out unless it says otherwise."""

    looks_at_rows = False
    """Whether it reads the training rows before training."""

    def __init__(self, adapter: Mapping[str, Any]) -> None:
        self.adapter = adapter

    def check(self, recipe: ResolvedRecipe) -> None:
        """Raise a UserError where the recipe contradicts the method."""
        if self.looks_at_rows and (recipe.section("data") or {}).get("streaming"):
            raise UserError(
                f"{self.name} looks at the training rows first, which a stream has not; drop data.streaming"
            )

    @property
    def held(self) -> int:
        """How many numbers of trainable tensors stay as they are."""
        return 0

    @property
    def name(self) -> str:
        """The value that asks for the step."""
        return str(self.adapter.get("init_lora_weights") or self.adapter["peft_type"])

    def settings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of PEFT's config class, as far as the section decides them."""
        return arguments

    def choose(self, arguments: dict[str, Any], material: Material) -> dict[str, Any]:
        """Return the keyword arguments as the data decide them, given those of `settings`."""
        return arguments

    def begin(self, model: Any, material: Material) -> None:
        """Give the adapter, which is in place, the values that it begins with."""

    def attach(self, trainer: Any) -> None:
        """Give the trainer what is done while it trains."""

    def finish(self, model: Any) -> None:
        """Bring the trained model into the form in which it is saved."""


def starts_with(adapter: Mapping[str, Any], initialization: str) -> bool:
    """Return whether the section is that of a new LoRA with this value of `init_lora_weights`."""
    return str(adapter.get("peft_type")).upper() == "LORA" and adapter.get("init_lora_weights") == initialization

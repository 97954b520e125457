"""The loss of held-out rows, each by itself."""

from collections.abc import Sequence
from typing import Any

from hf_peft_recipes.data import Example, Maker, Renderer
from hf_peft_recipes.data.formats import BadRowError
from hf_peft_recipes.data.rendering import TokenRow
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.generation.likelihoods import batch_tokens, token_losses


def row_losses(
    model: Any, renderer: Renderer, examples: Sequence[Example], max_length: int | None
) -> list[tuple[float, int]]:
    """Return the summed loss in nats and the number of supervised tokens of every example.

    Args:
        model: a causal language model.
        renderer: made for the model's tokenizer.
        examples: held-out rows.
        max_length: tokens of a row beyond this are not scored; None for all.

    Raises:
        UserError: a row cannot be rendered.
    """
    return token_losses(model, [scored_row(row) for row in renderer.rows(examples)], max_length)


def heaviest(model: Any, renderer: Maker, examples: Sequence[Example], batch_size: int) -> list[Example]:
    """Return the examples that ask most of memory when they are scored: the longest ones.

    Args:
        model: that is to score them.
        renderer: made for its tokenizer.
        examples: held-out rows.
        batch_size: that are answered at a time; so many are returned, and as many as two batches of scoring take.
    """
    lengths = [0 if isinstance(row, BadRowError) else row.length for row in renderer.rows(examples)]
    order = sorted(range(len(examples)), key=lambda index: -lengths[index])
    room, taken = 2 * batch_tokens(model), 0
    while taken < len(order) and (taken < batch_size or room > 0):
        room -= lengths[order[taken]]
        taken += 1
    return [examples[index] for index in order[:taken]]


def scored_row(row: TokenRow | BadRowError) -> TokenRow:
    """Return the row.

    Raises:
        UserError: it could not be rendered.
    """
    if isinstance(row, BadRowError):
        raise UserError(f"a held-out row cannot be scored: {row}")
    return row

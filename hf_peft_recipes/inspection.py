"""A look at the data before anything is trained: what was recognised, where every row goes, which tokens carry loss."""

import heapq
from collections.abc import Sequence
from itertools import chain
from typing import Any

from hf_peft_recipes import models
from hf_peft_recipes.data import Example, Examples, Maker
from hf_peft_recipes.data.encoders import LabelledRow
from hf_peft_recipes.data.formats import BadRowError
from hf_peft_recipes.data.rendering import IGNORED, TokenRow
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.preflight import RunRequest, examine_data
from hf_peft_recipes.rows import Tokenized, tokenize
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts

_UNFINISHED = "\ufffd"
"""What bytes that make no character yet are decoded to."""
_LONGEST_CHARACTER = 4
"""Bytes that a character has at most in UTF-8."""


def inspect_data(
    recipe: ResolvedRecipe, request: RunRequest, number: int = 3, row: int | None = None, longest: bool = False
) -> dict[str, Any]:
    """Return what `inspect --json` prints; its names are stable.

    Args:
        recipe: resolved.
        request: with `dry_run`, so that no folder is asked for; it may hold the caller's objects.
        number: rows to show.
        row: the one row to show, counted from 0 among the usable training rows.
        longest: show the longest rows, in place of some that are evenly spaced.

    Raises:
        UserError: as a run raises it for its data; a row that is not there.
    """
    if recipe.value("data.streaming"):
        raise UserError("inspect looks at every row; leave --data.streaming out")
    examples = examine_data(recipe, request)
    rows = examples.usable_rows
    if row is not None and not 0 <= row < rows:
        raise UserError(f"--row {row}: the usable training rows are 0 to {rows - 1}")
    tokenized = tokenize(recipe, request, examples)
    chosen: Sequence[int] = (
        [row] if row is not None else [at * rows // number for at in range(min(number, rows))] if number else []
    )
    if longest and row is None:
        chosen = _longest(examples, tokenized.renderer, number)
    placed = dict(zip(sorted(set(chosen)), examples.pick(sorted(set(chosen))), strict=True))
    data, is_answered = recipe.section("data") or {}, objective_facts(recipe.objective).is_rewarded
    template = "chat template" if tokenized.renderer.has_template else "none: prompt, separator, answer, end token"
    return {
        "recipe": recipe.name,
        "dataset": examples.name,
        "format": examples.format,
        "columns": dict(examples.columns),
        "fingerprint": examples.fingerprint,
        "model": models.base_location(recipe.section("model")),
        "template": template,
        "loss_on": data["loss_on"],
        "max_length": tokenized.max_length,
        "splits": {
            "train": examples.train_rows, "validation": len(examples.validation), "held_out": len(examples.held_out)
        },
        "checks": [vars(check) for check in tokenized.checks],
        "ledger": tokenized.rows.ledger(),
        "rows": [_shown(place, at, example, tokenized, is_answered) for at, (place, example) in placed.items()],
    }  # fmt: skip


def _longest(examples: Examples, renderer: Maker, number: int) -> Sequence[int]:
    """Return the numbers of the rows with the most tokens, longest first."""
    rows = chain.from_iterable(source.corpus.all_placed() for source in examples.sources)
    lengths = ((_length(renderer, example), at) for at, (_, example) in enumerate(rows))
    return [at for _, at in heapq.nlargest(number, lengths)]


def _length(renderer: Maker, example: Example) -> int:
    made = renderer.rows([example])[0]
    return 0 if isinstance(made, BadRowError) else made.length


def _row(example: Example, renderer: Maker, is_answered: bool) -> Any:
    """Return the example's tokens; of a prompt that the model answers itself no more than that, and none to learn."""
    if is_answered:
        served = renderer.prompt(example)
        return TokenRow(served, [IGNORED] * len(served))
    (row,) = renderer.rows([example])
    if isinstance(row, BadRowError):
        raise row
    return row


def _shown(place: str, at: int, example: Example, tokenized: Tokenized, is_answered: bool) -> dict[str, Any]:
    renderer, limit = tokenized.renderer, tokenized.max_length
    row, tokenizer = _row(example, renderer, is_answered), renderer.tokenizer
    marked = row.marked()
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    length = len(marked)
    return {
        "place": place,
        "index": at,
        "length": length,
        "supervised": row.supervised,
        "label": example.reference if isinstance(row, LabelledRow) else None,
        "cuts": list(range(limit, length, limit)) if limit else [],
        "tokens": [
            {"id": token, "text": text, "supervised": supervised, "special": token in special}
            for (token, supervised), text in zip(marked, _texts([one for one, _ in marked], tokenizer), strict=True)
        ],
    }


def _texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return what each token adds to the text; a character that several make up comes with the last of them."""
    # Behind another token: alone, some decoders would drop a blank that it begins with.
    anchor = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a"))[-1:]
    before, texts, pending = tokenizer.decode(anchor), list[str](), list[int]()
    for token in ids:
        pending.append(token)
        text = tokenizer.decode([*anchor, *pending])[len(before) :]
        unfinished = text.endswith(_UNFINISHED) and len(pending) < _LONGEST_CHARACTER
        texts.append("" if unfinished else text)
        pending = pending if unfinished else []
    return texts

"""What the data are like, as a plan has it: tokens, the rows that they are packed into, the steps of the whole run."""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.plan.held_out import HeldOut
from hf_peft_recipes.preflight import RunRequest, examine_data
from hf_peft_recipes.rows import Tokenized, tokenize
from hf_peft_recipes.spec import ResolvedRecipe

PACKED_TOGETHER = 1000
"""Documents that TRL packs at a time: `pack_dataset` maps over the data set in `datasets`' batches of that size."""


@dataclass(frozen=True)
class Documents:
    """The token rows of a data set, and what a run makes of them."""

    lengths: tuple[int, ...]
    """Tokens of every document, in the order of the data set."""
    supervised_tokens: int
    row_length: int
    """Tokens of the longest row that a step meets: of packed documents, or of one."""
    row_count: int
    """Rows of an epoch: packed, or the documents themselves."""
    lengths_a_row: float = 1
    """Documents of different lengths in a row, on average."""
    held_out: HeldOut | None = None
    """What the run is judged by; None where those are not known."""

    @property
    def tokens(self) -> int:
        """Of an epoch."""
        return sum(self.lengths)

    @property
    def supervised(self) -> float:
        """Share of the tokens that carry loss."""
        return self.supervised_tokens / self.tokens

    @property
    def span(self) -> float:
        """Tokens of the document that a token stands in, on average over the tokens."""
        return sum(length * length for length in self.lengths) / self.tokens

    def steps(self, batch: int, accumulation: int, devices: int) -> int:
        """Return the updates of an epoch, as transformers' Trainer counts them: a rest that is left over makes one too.

        Args:
            batch: rows of a micro-batch, on one device.
            accumulation: micro-batches of an update.
            devices: how many of them.
        """
        return math.ceil(math.ceil(self.row_count / (batch * devices)) / accumulation)

    def positions(self, batch: int, packed: bool, seed: int = 0) -> int:
        """Return the positions that an epoch runs through, the padding of rows that go together included.

        Args:
            batch: rows of a micro-batch.
            packed: whether documents lie in rows without padding.
            seed: of the order.
        """
        if packed or batch == 1:
            return self.tokens
        order = list(self.lengths)
        random.Random(seed).shuffle(order)
        groups = (order[start : start + batch] for start in range(0, len(order), batch))
        return sum(len(group) * max(group) for group in groups)


def look_at_documents(recipe: ResolvedRecipe, request: RunRequest) -> Documents:
    """Return what the recipe's data are like, tokenised as a run would and from its cache. Loads no weights.

    Args:
        recipe: resolved.
        request: with `dry_run`, so that no folder is asked for; it may hold the caller's objects.

    Raises:
        UserError: as a run raises it for its data; a stream, whose end is not known.
    """
    if recipe.value("data.streaming"):
        raise UserError("plan --data looks at every row; leave --data.streaming out")
    return documents_of(recipe, tokenize(recipe, request, examine_data(recipe, request)))


def documents_of(recipe: ResolvedRecipe, tokenized: Tokenized) -> Documents:
    """Return what token rows are like.

    Args:
        recipe: resolved.
        tokenized: its data, no stream.

    Raises:
        UserError: a row that cannot be scored.
    """
    lengths, supervised = _counted(tokenized.rows.train)
    training: Mapping[str, Any] = recipe.section("training") or {}
    packs = bool(training.get("packing"))
    packed = _packed(lengths, tokenized.max_length, packs)
    held_out = _held_out(recipe.section("evaluation") or {}, tokenized, packs)
    return Documents(tuple(lengths), supervised, packed.longest, packed.rows, packed.lengths_a_row, held_out)


@dataclass(frozen=True)
class Packing:
    """What rows a data set is packed into."""

    rows: int
    longest: int
    """Tokens of the fullest row."""
    lengths_a_row: float
    """Documents of different lengths in a row, on average: neighbours in length lie together."""


def pack(lengths: Sequence[int], row_length: int) -> Packing:
    """Return how TRL packs the documents: best fit, longest first.

    Args:
        lengths: of the documents, none longer than a row.
        row_length: tokens that a row has room for.
    """
    kinds, longest = list[set[int]](), 0
    for start in range(0, len(lengths), PACKED_TOGETHER):
        # What is free in a row, and the number of the row.
        spaces: list[tuple[int, int]] = []
        for length in sorted(lengths[start : start + PACKED_TOGETHER], reverse=True):
            at = bisect_left(spaces, (length, -1))
            if at == len(spaces):
                kinds.append(set())
                space, row = row_length, len(kinds) - 1
            else:
                space, row = spaces.pop(at)
            kinds[row].add(length)
            longest = max(longest, row_length - space + length)
            if space > length:
                insort(spaces, (space - length, row))
    return Packing(len(kinds), longest, sum(map(len, kinds)) / max(1, len(kinds)))


def _packed(lengths: Sequence[int], limit: int | None, packing: bool) -> Packing:
    """Return the rows that documents make, each its own where nothing is packed."""
    longest = max(lengths, default=0)
    return pack(lengths, limit or longest) if packing else Packing(len(lengths), longest, 1)


def _held_out(section: Mapping[str, Any], tokenized: Tokenized, packing: bool) -> HeldOut:
    """Return the lengths of the rows that are scored, answered and watched.

    Raises:
        UserError: a row that cannot be scored.
    """
    from hf_peft_recipes.evaluation import TASKS, answer_tokens, find_task, scored_row

    renderer, examples, limit = tokenized.renderer, tokenized.rows.held_out, tokenized.max_length
    rows = [scored_row(row) for row in renderer.rows(examples)]
    scored = tuple((len(row.input_ids[:limit]), _first_supervised(row.labels[:limit])) for row in rows)
    watched = tokenized.rows.validation
    lengths = [len(ids) for ids in watched["input_ids"]] if watched is not None else []
    packed = _packed(lengths, limit, packing)
    watched_rows = packed.rows, packed.longest
    if not examples or not TASKS[find_task(examples, section["task"])].generates:
        return HeldOut(scored, (), 0, watched_rows)
    prompts = tuple(len(renderer.prompt(example)) for example in examples)
    return HeldOut(scored, prompts, answer_tokens(renderer.tokenizer, examples, section), watched_rows)


def _first_supervised(labels: Sequence[int]) -> int:
    """Return where the first token with loss stands; behind the last one where there is none."""
    from hf_peft_recipes.data.rendering import IGNORED

    return next((at for at, label in enumerate(labels) if label != IGNORED), len(labels))


def _counted(train: Any) -> tuple[list[int], int]:
    """Return the length of every token row, and how many tokens carry loss in all."""
    import pyarrow.compute as compute

    from hf_peft_recipes.data.rendering import IGNORED

    lengths, supervised = list[int](), 0
    for table in train.with_format("arrow").iter(batch_size=1000):
        lengths += compute.list_value_length(table["input_ids"]).to_pylist()
        supervised += compute.sum(compute.not_equal(compute.list_flatten(table["labels"]), IGNORED)).as_py()
    return lengths, supervised

"""Metrics of entities, micro and by kind: of tagged tokens as seqeval has them, or of entities that are written out."""

from collections import Counter
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import numpy

from hf_peft_recipes.data.entities import read_entities
from hf_peft_recipes.evaluation.measured import Measured, nothing, ratios
from hf_peft_recipes.evaluation.scores import RowScore

MAX_KINDS = 50
"""More different kinds than this are no kinds of entities."""
_SEQEVAL = str.maketrans("LU", "ES")
"""BILOU's letters as seqeval knows them."""

Found = Counter[tuple[str, Hashable]]
"""Kind and place, or kind and words, of every entity."""


def entities(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return micro precision, recall and F1 of entities, and those of each kind that references have.

    Tagged tokens give entities with their place, as in CoNLL-2003 (Tjong Kim Sang and De Meulder 2003); those that are
    written out, `words: kind; …`, have none, and are compared as often as they are named.
    """
    pairs = [_found(score) for score in scores]
    kinds = sorted({kind for _, reference in pairs for kind, _ in reference if kind})
    index = {kind: at for at, kind in enumerate(kinds)}
    # One column more for kinds that no reference has, and for what has no kind.
    right, answered, actual = (numpy.zeros((len(pairs), len(kinds) + 1)) for _ in range(3))
    for row, (answer, reference) in enumerate(pairs):
        for counts, found in ((right, answer & reference), (answered, answer), (actual, reference)):
            for (kind, _), times in found.items():
                counts[row, index.get(kind, len(kinds))] += times

    def figures(counts: Any) -> dict[str, Any]:
        found = ratios(*((counts @ each).sum(1) for each in (right, answered, actual)))
        return {f"entity_{name}": found[name] for name in ("f1", "precision", "recall")}

    def of_kind(at: int, counts: Any) -> dict[str, Any]:
        return ratios(*(counts @ each[:, at] for each in (right, answered, actual)))

    return Measured(
        figures,
        classes={kind: partial(of_kind, at) for kind, at in index.items()},
        support={kind: int(actual[:, at].sum()) for kind, at in index.items()},
    )


def words_tagged(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return the share of words that are given their own tag; nothing of what is written out."""
    if any(score.tags is None or score.reference_tags is None for score in scores):
        return nothing()
    pairs = [list(zip(score.tags or (), score.reference_tags or (), strict=True)) for score in scores]
    right = numpy.array([sum(one == other for one, other in pair) for pair in pairs], dtype=float)
    words = numpy.array([len(pair) for pair in pairs], dtype=float)
    return Measured(lambda counts: {"tag_accuracy": counts @ right / numpy.maximum(counts @ words, 1)})


def are_entities(references: Sequence[str]) -> bool:
    """Return whether all references write out entities: few kinds, for more words than there are kinds."""
    pairs = [pair for reference in references for pair in read_entities(reference)]
    kinds = {kind for _, kind in pairs}
    return (
        0 < len(kinds) <= MAX_KINDS
        and len({words for words, _ in pairs}) > len(kinds)
        and not any(kind == "" or " " in kind for kind in kinds)
    )


def _found(score: RowScore) -> tuple[Found, Found]:
    """Return the entities that the model found in a row, and those that are there."""
    if score.reference_tags is not None:
        if score.tags is None or len(score.tags) != len(score.reference_tags):
            raise ValueError(f"{len(score.tags or ())} tags for {len(score.reference_tags)} tokens")
        return _tagged(score.tags), _tagged(score.reference_tags)
    return _written(score.answer or ""), _written(str(score.reference))


def _tagged(tags: Sequence[str]) -> Found:
    from seqeval.metrics.sequence_labeling import get_entities

    spans = get_entities([tag[:1].translate(_SEQEVAL) + tag[1:] for tag in tags])
    return Counter((kind, (start, end)) for kind, start, end in spans)


def _written(text: str) -> Found:
    return Counter((kind, words) for words, kind in read_entities(text))

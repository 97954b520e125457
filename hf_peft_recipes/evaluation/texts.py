"""Metrics of longer answers: ROUGE by rouge-score; BLEU and chrF over all rows, by sacrebleu."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy

from hf_peft_recipes.evaluation.measured import Measured, means
from hf_peft_recipes.evaluation.scores import RowScore

_UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Japanese, Chinese
    "]"
)
"""Characters of scripts that put no spaces between words."""


class Words:
    """A tokenizer for rouge-score: its own drops every letter that is not ASCII. On ASCII text both are alike."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text in lower case; of scripts without spaces, each character."""
        kept = (letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text.lower())
        return _UNSPACED.sub(r" \g<0> ", "".join(kept)).split()


def rouge(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004): F1 of each row with its best reference, averaged."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, tokenizer=Words())
    found = [scorer.score_multi(score.references, score.answer or "") for score in scores]
    return means({kind: [row[kind].fmeasure for row in found] for kind in kinds})


def bleu(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return BLEU (Papineni et al. 2002), from 0 to 100; by characters where references put no spaces between words."""
    from sacrebleu.metrics import BLEU

    letters = "".join("".join(score.references) for score in scores)
    unspaced = len(_UNSPACED.findall(letters)) > sum(map(str.isalpha, letters)) / 2
    return _of_corpus("bleu", BLEU(tokenize="char" if unspaced else "13a"), scores)


def chrf(scores: Sequence[RowScore], base: Sequence[RowScore] | None) -> Measured:
    """Return chrF2 (Popović 2015), from 0 to 100."""
    from sacrebleu.metrics import CHRF

    return _of_corpus("chrf", CHRF(), scores)


def _of_corpus(name: str, metric: Any, scores: Sequence[RowScore]) -> Measured:
    """Return a metric of sacrebleu. It is made of sums over rows, which is what sacrebleu's own bootstrap uses too."""
    streams = list(zip_longest(*(score.references for score in scores)))
    by_row = numpy.array(metric._extract_corpus_statistics([score.answer or "" for score in scores], streams))

    def figures(counts: Any) -> dict[str, Any]:
        totals = (counts @ by_row).tolist()
        return {name: numpy.array([metric._compute_score_from_stats(total).score for total in totals])}

    return Measured(figures, signatures={name: str(metric.get_signature())})

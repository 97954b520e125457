"""How good a model is on held-out rows: loss, perplexity and the task's metrics, each with its bootstrap interval.

Nothing is packed here: a row never sees another one.
"""

from hf_peft_recipes.evaluation.losses import BATCH_LOGIT_BYTES, heaviest, padded_batches, scored_row
from hf_peft_recipes.evaluation.metrics import classification_metrics, confusion, summarize
from hf_peft_recipes.evaluation.scores import Metrics, RowScore
from hf_peft_recipes.evaluation.tasks import answer_tokens, evaluation_section, find_task, score_rows

__all__ = [
    "BATCH_LOGIT_BYTES",
    "Metrics",
    "RowScore",
    "answer_tokens",
    "classification_metrics",
    "confusion",
    "evaluation_section",
    "find_task",
    "heaviest",
    "padded_batches",
    "score_rows",
    "scored_row",
    "summarize",
]

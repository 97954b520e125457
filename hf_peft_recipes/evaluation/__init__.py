"""How good a model is on held-out rows: loss, perplexity and the task's metrics, each with its bootstrap interval.

Nothing is packed here: a row never sees another one.
"""

from hf_peft_recipes.evaluation.bootstrap import intervals, resampled
from hf_peft_recipes.evaluation.comparison import compared, difference
from hf_peft_recipes.evaluation.losses import heaviest, scored_row
from hf_peft_recipes.evaluation.metrics import TASKS, Task, summarize
from hf_peft_recipes.evaluation.scores import Metrics, RowScore
from hf_peft_recipes.evaluation.tasks import answer_tokens, evaluation_section, find_task, score_rows

__all__ = [
    "TASKS",
    "Metrics",
    "RowScore",
    "Task",
    "answer_tokens",
    "compared",
    "difference",
    "evaluation_section",
    "find_task",
    "heaviest",
    "intervals",
    "resampled",
    "score_rows",
    "scored_row",
    "summarize",
]

"""One file a kind of head: what a model gives out, how it is loaded, and what it can be told by."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from hf_peft_recipes.spec.objectives import objective_facts


class Head(Protocol):
    """What every file of this folder offers."""

    TASK_TYPE: str
    """PEFT's name of the task."""

    def model_class(self) -> Any:
        """Return the transformers class that loads a base under this head."""

    def loading(self, labels: Sequence[str], tokenizer: Any) -> dict[str, Any]:
        """Return the keyword arguments of `from_pretrained` that the head needs beside the recipe's.

        Args:
            labels: what is told apart, in the order of the logits; empty where nothing is.
            tokenizer: of the base.
        """

    def answer(self, model: Any, ids: Sequence[int], stop_ids: Sequence[int], pad_id: int, tokens: int) -> list[int]:
        """Return the tokens that the model writes, greedily and `tokens` at the most; none where it writes nothing.

        Args:
            model: under this head.
            ids: of the prompt.
            stop_ids: ids that end an answer.
            pad_id: of the tokenizer.
            tokens: the longest answer.
        """

    def values(self, model: Any, ids: Sequence[int], answer: Sequence[int]) -> Any:
        """Return what the model is told by, of shape (positions, n), in float32 on the CPU: log-probabilities, or a
        score alone.

        Args:
            model: under this head.
            ids: of the prompt.
            answer: tokens that follow it, or that it is answered by.
        """


class Scoring(Head, Protocol):
    """A head whose rows make batches with labels, which upstream's causal language models do without."""

    def collator(self, tokenizer: Any) -> Any:
        """Return what makes a batch, labels included, of rows as `data.shapes` has them."""

    def logits(self, model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Return logits of shape (n, classes), targets and row numbers of shape (n,): one for each label of a batch."""


def head_of(name: str) -> Any:
    """Return the head `name`, a `Head` or a `Scoring` one, its module imported."""
    return import_module(f"hf_peft_recipes.heads.{name}")


def find_head(objective: str) -> Head:
    """Return the head of the objective's models.

    Raises:
        UserError: there is no such objective.
    """
    head: Head = head_of(objective_facts(objective).head)
    return head


def head_of_class(model_class: str) -> Head:
    """Return the head of models that this class of transformers loads.

    Args:
        model_class: its name, `AutoModelForCausalLM` for one.
    """
    head: Head = head_of(_OF_CLASS[model_class])
    return head


_OF_CLASS = {
    "AutoModelForCausalLM": "causal_lm",
    "AutoModelForSequenceClassification": "sequence_classification",
    "AutoModelForTokenClassification": "token_classification",
    "AutoModelForSeq2SeqLM": "seq2seq_lm",
}

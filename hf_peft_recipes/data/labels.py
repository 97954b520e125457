"""Which labels the training rows tell apart."""

from collections import Counter
from collections.abc import Callable, Iterable

from hf_peft_recipes.data.formats import Example
from hf_peft_recipes.data.reading import Examples
from hf_peft_recipes.data.streaming import StreamedExamples
from hf_peft_recipes.errors import UserError

MAX_LABELS = 1000
"""More different labels than this are texts of another kind."""
_OUTSIDE = "O"


def find_labels(examples: Examples, shape: str) -> tuple[str, ...]:
    """Return the labels of the training rows, or the tags of their words, in the order of the model's logits.

    Args:
        examples: the data of a run.
        shape: of its rows; none but `labelled` and `tagged` have labels.

    Raises:
        UserError: one label only, more than can be labels, held-out rows with a label that is never learned.
    """
    if shape not in _LABELS:
        return ()
    if isinstance(examples, StreamedExamples):
        raise UserError("data.streaming: labels are not known before all rows are read; leave it out")
    what, told = _LABELS[shape], "tag" if shape == "tagged" else "label"
    counted = Counter(
        label for source in examples.sources for example in source.corpus for label in what(example)
    )  # fmt: skip
    name = f"data set {examples.name!r}"
    if len(counted) < 2:
        raise UserError(f"{name}: every {told} is {next(iter(counted), '')!r}; there is nothing to tell apart")
    if len(counted) > MAX_LABELS:
        shown = ", ".join(repr(label[:30]) for label in list(counted)[:3])
        raise UserError(
            f"{name}: {len(counted)} different {told}s ({shown} …), where {MAX_LABELS} are the most: "
            f"these are texts; did you mean sft or seq2seq?"
        )
    unseen = Counter(label for example in examples.held_out for label in what(example) if label not in counted)
    if unseen:
        label, number = unseen.most_common(1)[0]
        raise UserError(
            f"{name}: {told} {label!r} stands in {number} held-out rows and in no training row: it could never be right"
        )
    return tuple(sorted(counted, key=_order))


def _of_text(example: Example) -> Iterable[str]:
    return [str(example.reference).strip()]


def _of_words(example: Example) -> Iterable[str]:
    return example.tags


_LABELS: dict[str, Callable[[Example], Iterable[str]]] = {"labelled": _of_text, "tagged": _of_words}
"""Shape of rows to the labels of an example."""


def _order(label: str) -> tuple[bool, float, str]:
    """Numbers by their size, all else by name; what is outside of every entity first."""
    number = float(label) if label.lstrip("-").isdigit() else float("inf")
    return (label != _OUTSIDE, number, label)

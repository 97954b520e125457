"""Data read whole, or streamed: the one choice between the two is made here."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.data.encoders import Maker
from hf_peft_recipes.data.preparation import PreparedData, tokenize_data
from hf_peft_recipes.data.reading import Examples, read_examples
from hf_peft_recipes.data.streaming import StreamedExamples, read_stream, tokenize_stream
from hf_peft_recipes.embedded import demo


def read(
    data: Mapping[str, Any], evaluation: Mapping[str, Any], seed: int, dataset: Any = None, shape: str = "text"
) -> Examples:
    """Return the rows, understood and split.

    Args:
        data: the recipe's section of that name.
        evaluation: the recipe's section of that name.
        seed: of the split that is made when the data set has no held-out one.
        dataset: an object that the caller has, in place of `data["dataset"]`.
        shape: of the rows that are wanted: the embedded data are given in any.

    Raises:
        UserError: data that cannot be used.
    """
    if dataset is None and data["dataset"] is None:
        dataset = demo(shape)
    if data["streaming"]:
        return read_stream(data, evaluation.get("max_rows"), dataset)
    return read_examples(data, evaluation.get("split"), evaluation.get("max_rows"), seed, dataset)


def tokenize(
    examples: Examples,
    renderer: Maker,
    max_length: int | None,
    data: Mapping[str, Any],
    seed: int,
    shape: str = "text",
) -> PreparedData:
    """Return the rows as tokens, see `tokenize_data` and `tokenize_stream`."""
    if isinstance(examples, StreamedExamples):
        return tokenize_stream(examples, renderer, max_length, data, seed, shape)
    return tokenize_data(examples, renderer, max_length, data, seed, shape)

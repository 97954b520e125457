"""What the libraries below say that nobody can act on, silenced one by one, each with its reason."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

HARMLESS_WARNINGS = (
    # (start of the message as a regular expression, why it may be dropped)
    (r"Failed to load CPU gemm_4bit_forward", "bitsandbytes falls back to its own kernel, which is what is measured"),
    (r".*torch\.jit\.script_method.* is deprecated", "inside torch and its callers, nothing of ours uses it"),
    (r"`gradient_checkpointing` is deprecated", "TRL 1.16 still passes the old name itself"),
)

HARMLESS_LOGS = (
    # (logger, part of the message, why it may be dropped)
    ("transformers", "PAD/BOS/EOS tokens that differ", "the trainer aligns the model with the tokenizer, as is wanted"),
    ("bitsandbytes", "Failed to load CPU gemm_4bit_forward", "as above"),
)


class _Filter(logging.Filter):
    def __init__(self, parts: tuple[str, ...]) -> None:
        super().__init__()
        self._parts = parts

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be shown."""
        message = record.getMessage()
        return not any(part in message for part in self._parts)


@contextmanager
def quiet() -> Iterator[None]:
    """Run the block without upstream's known harmless messages and without its progress bars."""
    import datasets
    import transformers

    had_bars = (transformers.utils.logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled())
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    parts = tuple(part for _, part, _ in HARMLESS_LOGS)
    handlers = [handler for name in {"transformers", "bitsandbytes"} for handler in logging.getLogger(name).handlers]
    noise = _Filter(parts)
    for handler in handlers:
        handler.addFilter(noise)
    with warnings.catch_warnings():
        for pattern, _ in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=pattern)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(noise)
            if had_bars[0]:
                transformers.utils.logging.enable_progress_bar()
            if not had_bars[1]:
                datasets.enable_progress_bars()


def silence_imports() -> None:
    """Drop the harmless warnings that appear while libraries are imported; called by the command line only."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for pattern, _ in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)

"""What the libraries below say that nobody can act on, silenced one by one, each with its reason."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

HARMLESS_WARNINGS = (
    # (start of the message, as a regular expression; why it may be dropped)
    (r".*torch\.jit\.script_method.* is deprecated", "inside torch and its callers; nothing of ours uses it"),
    (r"`(is_)?gradient_checkpointing` is deprecated", "TRL 1.16 and PEFT 0.21 still ask for the old name themselves"),
    (r"You are importing from 'trl\.experimental'", "ORPO and CPO live nowhere else any more; tests hold them to it"),
    (
        r"Position ids are not supported for parameter efficient",
        "rows with virtual tokens are not packed: positions count",
    ),
    (r"This implementation of AdamW is deprecated", "galore-torch brings its own, the one that was asked for"),
    (r"The following rank_pattern keys did not match any", "AdaLoRA's name matrices, where LoRA's name layers"),
    (r"Adapter '.*': \d+ LoRA tensor\(s\) have invalid shape", "AdaLoRA leaves some matrices no rank"),
    (r"Merge lora module to \d-bit linear may get different generations", "`merge` measures by how much"),
    (r"Input and output embeddings are no longer tied after merging", "they were trained apart, and are saved so"),
    (r"Model has `tie_word_embeddings=True` and a tied layer is part of", "`merge` keeps apart what was trained apart"),
)

HARMLESS_LOGS = (
    # (logger; part of the message; why it may be dropped)
    *(
        (
            "transformers.modeling_utils",
            f"For{kind}Classification LOAD REPORT",
            "a classifier begins as it is drawn, is trained whole and saved; `models` refuses bases that lack more",
        )
        for kind in ("Sequence", "Token")
    ),
    (
        "transformers.integrations.bitsandbytes",
        "The modules are dequantized in",
        "that is what a merge into a dequantised base is",
    ),
    (
        "bitsandbytes.backends.cpu.ops",
        "Failed to load CPU gemm_4bit_forward",
        "an optional kernel for inference from the Hub; training does not use it",
    ),
    ("torchao", "Failed to load", "kernels for newer GPUs, which weights in 8-bit floats do without"),
    ("torch.utils._pytree", "is an Enum subclass and is now natively supported", "torchao 0.18 registers its own"),
    (
        "transformers.tokenization_utils_base",
        "Token indices sequence length is longer",
        "rows longer than the model's context are cut by the recipe's own rule, and counted",
    ),
    (
        "transformers.trainer",
        "missing keys in the checkpoint model loaded: ['lm_head.weight']",
        "a head that is tied to the embedding is saved once; an untied one is never missing",
    ),
    (
        "transformers.trainer",
        "PAD/BOS/EOS tokens that differ",
        "the trainer aligns the model's config with the tokenizer, which is what is wanted",
    ),
    (
        "transformers.trainer_utils",
        "do not match the ones in the `trainer_state.json`",
        "it compares shares of the steps with the steps they came to; `--resume` compares the recipes",
    ),
    (
        "lm_eval.models.huggingface",
        "`pretrained` model kwarg is not of type `str`",
        "the harness is handed the model as it was trained, and one process evaluates",
    ),
    (
        "lm_eval.models.huggingface",
        "Passed an already-initialized model",
        "the same",
    ),
)


class _Filter(logging.Filter):
    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be shown."""
        return self._part not in record.getMessage()


@contextmanager
def quiet() -> Iterator[None]:
    """Run the block, imports in it included, without upstream's known harmless messages and its progress bars."""
    filters = [(logging.getLogger(logger), _Filter(part)) for logger, part, _ in HARMLESS_LOGS]
    for logger, noise in filters:
        logger.addFilter(noise)
    with warnings.catch_warnings():
        for pattern, _ in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=pattern)
        import datasets
        from transformers.utils import logging as transformers_logging

        shown = (transformers_logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled())
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            for logger, noise in filters:
                logger.removeFilter(noise)
            if shown[0]:
                transformers_logging.enable_progress_bar()
            if shown[1]:
                datasets.enable_progress_bars()

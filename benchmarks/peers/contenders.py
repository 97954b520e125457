"""Who is compared: one line each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One way to do the work."""

    module: str
    """Of this package; its `main` trains a job and prints one line."""
    recipe: str = "lora"
    """`lora` or `qlora`: what it is compared on."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: str | None = None
    """See `environments`; None for ours."""
    unmatched: str = ""
    """Why it does not do the same work, step by step; empty where it must, which is checked."""
    packs_alike: bool = True
    """Whether its packed rows are ours; where not, the check is of one document a row."""
    accumulates_alike: bool = True
    """Whether micro-batches weigh by their tokens with loss; where not, the check is of one row a step."""
    default: bool = True
    """Whether it runs without being named."""


_PACKED = {
    "packing": True,
    "packing_strategy": "bfd_split",
    "gradient_checkpointing": False,
    "assistant_only_loss": True,
}
"""TRL's flags at their fastest on a CPU, no token dropped, and the loss where ours has it."""

CONTENDERS = {
    "ours": Contender("ours"),
    "trl_best": Contender("plain_trl", settings={"training": _PACKED}),
    "trl_defaults": Contender(
        "plain_trl",
        unmatched="as written first: a model by name is float32, 8 padded rows a step, checkpointing, loss on every "
        "token, learning rate 2e-5 linear; compared by tokens a second alone",
    ),
    "ours_qlora": Contender("ours", "qlora"),
    "trl_qlora": Contender(
        "plain_trl",
        "qlora",
        # What `trl sft --dtype bfloat16 --load_in_4bit --use_bnb_nested_quant --use_peft` makes of its flags.
        settings={
            "training": _PACKED,
            "quantization": {"load_in_4bit": True, "use_bnb_nested_quant": True},
        },
    ),
    "llamafactory": Contender("llamafactory", environment="llamafactory", packs_alike=False, default=False),
    "axolotl": Contender(
        # 0.19 averages the loss within each micro-batch, then over them: with one row a step it agrees with ours.
        "axolotl", environment="axolotl", packs_alike=False, accumulates_alike=False, default=False
    ),
    "torchtune": Contender("torchtune", environment="torchtune", packs_alike=False, default=False),
    "unsloth": Contender("unsloth", environment="unsloth", packs_alike=False, default=False),
}  # fmt: skip
"""The first of a recipe is ours, which the others are held against."""

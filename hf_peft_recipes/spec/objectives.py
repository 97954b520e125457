"""What is known of an objective before anything is imported: the class of its arguments, the shape of its rows."""

from dataclasses import dataclass

from hf_peft_recipes.errors import UserError, did_you_mean


@dataclass(frozen=True)
class ObjectiveFacts:
    """One objective."""

    config_class: str
    """Whose keyword arguments the `training` section holds."""
    shape: str
    """Of the rows that are trained on, see `data.shapes`."""


OBJECTIVES = {
    "sft": ObjectiveFacts("trl.trainer.sft_config.SFTConfig", "text"),
    "pretrain": ObjectiveFacts("trl.trainer.sft_config.SFTConfig", "plain"),
    "dpo": ObjectiveFacts("trl.trainer.dpo_config.DPOConfig", "pairs"),
    "kto": ObjectiveFacts("trl.trainer.kto_config.KTOConfig", "judged"),
    "orpo": ObjectiveFacts("trl.experimental.orpo.orpo_config.ORPOConfig", "pairs"),
    "cpo": ObjectiveFacts("trl.experimental.cpo.cpo_config.CPOConfig", "pairs"),
}
"""Objectives by name; the module of the same name in `objectives/` trains them."""


def objective_facts(name: str) -> ObjectiveFacts:
    """Return what is known of the objective `name`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective {name!r}{did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name]

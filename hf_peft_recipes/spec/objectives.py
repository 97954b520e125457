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
    title: str
    """What people call it."""
    head: str = "causal_lm"
    """What its models give out: the room of `heads/` of that name."""
    compares: bool = False
    """Whether likelihoods with a gradient are held against others without one: both are to come from the same code."""

    @property
    def writes(self) -> bool:
        """Whether its models write text."""
        return self.head in ("causal_lm", "seq2seq_lm")

    @property
    def packs(self) -> bool:
        """Whether rows can be packed, which the faster paths through a model and its plan are made for."""
        return self.shape in ("text", "plain")

    @property
    def is_rewarded(self) -> bool:
        """Whether the model's own answers are trained on, by what reward functions say of them."""
        return self.shape == "prompts"


_TASK = "hf_peft_recipes.objectives.task_arguments.TaskArguments"

OBJECTIVES = {
    "sft": ObjectiveFacts("trl.trainer.sft_config.SFTConfig", "text", "supervised fine-tuning"),
    "pretrain": ObjectiveFacts("trl.trainer.sft_config.SFTConfig", "plain", "continued pretraining"),
    "dpo": ObjectiveFacts(
        "trl.trainer.dpo_config.DPOConfig", "pairs", "direct preference optimisation (DPO)", compares=True
    ),
    "kto": ObjectiveFacts(
        "trl.trainer.kto_config.KTOConfig", "judged", "Kahneman-Tversky optimisation (KTO)", compares=True
    ),
    "orpo": ObjectiveFacts(
        "trl.experimental.orpo.orpo_config.ORPOConfig", "pairs", "odds-ratio preference optimisation (ORPO)"
    ),
    "cpo": ObjectiveFacts(
        "trl.experimental.cpo.cpo_config.CPOConfig", "pairs", "contrastive preference optimisation (CPO)"
    ),
    "reward": ObjectiveFacts("trl.trainer.reward_config.RewardConfig", "pairs", "reward modelling", "reward"),
    "classify": ObjectiveFacts(_TASK, "labelled", "sequence classification", "sequence_classification"),
    "tag": ObjectiveFacts(_TASK, "tagged", "token classification", "token_classification"),
    "seq2seq": ObjectiveFacts(
        "hf_peft_recipes.objectives.task_arguments.RewritingArguments",
        "rewritten",
        "sequence-to-sequence training",
        "seq2seq_lm",
    ),
    "grpo": ObjectiveFacts(
        "trl.trainer.grpo_config.GRPOConfig", "prompts", "group relative policy optimisation (GRPO)", compares=True
    ),
    "rloo": ObjectiveFacts(
        "trl.trainer.rloo_config.RLOOConfig", "prompts", "REINFORCE leave-one-out (RLOO)", compares=True
    ),
}
"""Objectives by name; the module of the same name in `objectives/` trains them."""


PIPELINES = {
    "causal_lm": "text-generation",
    "sequence_classification": "text-classification",
    "reward": "text-classification",
    "token_classification": "token-classification",
    "seq2seq_lm": "text2text-generation",
}
"""Head to the Hub's name of what such models do."""


def objective_facts(name: str) -> ObjectiveFacts:
    """Return what is known of the objective `name`.

    Raises:
        UserError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective {name!r}{did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name]

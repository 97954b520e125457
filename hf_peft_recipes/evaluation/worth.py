"""What generated answers are worth, by the reward functions that training asks too."""

from collections.abc import Sequence

from hf_peft_recipes.data import Example, Renderer
from hf_peft_recipes.data.shapes import SHAPES, Prompt
from hf_peft_recipes.scorers.rewards import Answers, Reward


def worths(
    rewards: Sequence[Reward], renderer: Renderer, examples: Sequence[Example], produced: Sequence[Sequence[int]]
) -> list[dict[str, float]]:
    """Return for each answer its weighted reward as `reward` and each function's as `reward_NAME`; nothing without any.

    Args:
        rewards: the functions.
        renderer: made for the model's tokenizer.
        examples: what was asked.
        produced: token ids of the answers, one sequence an example.

    Raises:
        RewardError: a function failed.
    """
    if not rewards:
        return [{} for _ in examples]
    prompts = [made[0] for made in SHAPES["prompts"].make(renderer, examples) if isinstance(made, list)]
    prompts = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
    answers = Answers(
        [prompt.text for prompt in prompts],
        [prompt.conversation for prompt in prompts],
        [prompt.reference for prompt in prompts],
        renderer.tokenizer.batch_decode(produced, skip_special_tokens=True),
        produced,
    )
    values = {reward.name: reward.score(answers, **_NO_TRAINER) for reward in rewards}
    return [
        {
            "reward": sum(reward.weight * values[reward.name][row] for reward in rewards),
            **{f"reward_{name}": by_row[row] for name, by_row in values.items()},
        }
        for row in range(len(answers))
    ]


def _dropped(*_: object, **__: object) -> None:
    return None


_NO_TRAINER = {"trainer_state": None, "log_extra": _dropped, "log_metric": _dropped}
"""What upstream hands to a function while it trains."""

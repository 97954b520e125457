"""What objectives share in which the model answers itself, and learns from what its answers are worth.

Upstream's trainer is handed prompts as token ids, those that the model is served, where it would tokenise text or
messages by rules of its own; it stops answers where the run stops them; its reward functions are held to what they
must return.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl.trainer.utils import add_fused_lm_head

from hf_peft_recipes import models
from hf_peft_recipes.data import PreparedData
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.objectives.answers import read_answers, write_answers
from hf_peft_recipes.objectives.dpo import reference_of
from hf_peft_recipes.objectives.learning_signal import LearningSignal
from hf_peft_recipes.objectives.trainers import House, make_arguments, make_trainer
from hf_peft_recipes.scorers.rewards import Answers, Reward

_COLUMNS = ("conversation", "reference")


class Rollouts(House):
    """Mixed in before upstream's trainer: prompts as they are served, and a look at the rewards."""

    signal: LearningSignal
    _step: int
    """Micro-batches so far, which say when answers are due."""
    _buffered_inputs: list[dict[str, Any]] | None
    """The answers that were drawn last, in as many parts as are learned from in turn."""

    def _generate_and_score_completions(self, inputs: Sequence[Mapping[str, Any]]) -> Any:
        self._served = [list(row["prompt_ids"]) for row in inputs]
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: Sequence[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the ids that came with the prompts, whose text is for logs and reward functions."""
        return self._served, None, {}

    def _calculate_rewards(self, *arguments: Any) -> Any:
        """Return upstream's rewards of shape (answers, functions), having looked whether they differ."""
        rewards = super()._calculate_rewards(*arguments)  # type: ignore[misc]
        if self.model.training:  # type: ignore[attr-defined]
            weights = self.reward_weights.to(rewards.device)  # type: ignore[attr-defined]
            grouped = (rewards * weights).sum(1).view(-1, self.num_generations)  # type: ignore[attr-defined]
            warning = self.signal.note(grouped)
            if warning and PartialState().is_main_process:
                print(f"warning: {warning}", flush=True, file=sys.stderr)
        return rewards

    def _save_rng_state(self, output_dir: str) -> None:
        """Let a checkpoint keep the answers that are to be learned from yet, of every process its own.

        Upstream draws others when it goes on, and counts from there when the next ones are due.
        """
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        learned = self._step % (self.args.steps_per_generation * self.num_iterations) == 0  # type: ignore[attr-defined]
        write_answers(
            Path(output_dir), self.args.process_index, self.args.world_size, self._step,
            [] if learned else self._buffered_inputs or [],
        )  # fmt: skip

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Take up the answers, and when the next ones are due."""
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        # On another number of processes answers are drawn anew, at the step at which they are due.
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        kept = read_answers(Path(checkpoint), self.args.process_index, self.args.world_size) if checkpoint else None
        if kept:
            self._step, self._buffered_inputs = kept[0], kept[1] or None


def training_arguments(config_class: Any, arguments: Mapping[str, Any]) -> Any:
    """Return upstream's config object, its batches holding whole groups of answers.

    Args:
        config_class: of the trainer.
        arguments: its keyword arguments.

    Raises:
        UserError: the answers to a prompt do not fit into a batch evenly, or upstream refuses a value.
    """
    if arguments.get("generation_batch_size") is None and arguments.get("steps_per_generation") is None:
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        rows, steps = (int(arguments.get(name) or default) for name, default in zip(names, (8, 1), strict=True))
        processes = PartialState().num_processes
        answers, group = rows * steps * processes, int(arguments.get("num_generations") or 2)
        if answers % group:
            near = [number for number in range(2, answers + 1) if answers % number == 0]
            hint = f"; num_generations {', '.join(map(str, near))} would do" if near else ""
            raise UserError(
                f"training.num_generations {group} does not divide the {answers} answers of an update "
                f"({names[0]} {rows} × {names[1]} {steps} × {processes} process{'es' if processes > 1 else ''}){hint}"
            )
    return make_arguments(config_class, dict(arguments))


def build_trainer(
    trainer_class: Any,
    model: Any,
    tokenizer: Any,
    data: PreparedData,
    arguments: Any,
    callbacks: list[Any],
    rewards: Sequence[Reward],
) -> Any:
    """Return the trainer, ready to train.

    Args:
        trainer_class: upstream's with `Rollouts` before it.
        model: with its adapter, or to be trained whole.
        tokenizer: of the model.
        data: rows of the shape `prompts`.
        arguments: as `training_arguments` makes them.
        callbacks: of transformers' Trainer.
        rewards: one at the least.

    Raises:
        UserError: upstream refuses the combination.
    """
    beta, reference = arguments.beta, None
    if beta and not hasattr(model, "peft_config"):
        # Upstream would load the reference by the base's name, without its revision, and objects have no name.
        reference, arguments.beta = reference_of(model), 0.0
    arguments.reward_weights = [reward.weight for reward in rewards]
    trainer = make_trainer(
        trainer_class, model, tokenizer, data, arguments, callbacks,
        reward_funcs=[_as_upstreams(reward) for reward in rewards],
    )  # fmt: skip
    if reference is not None:
        add_fused_lm_head(reference, temperature=arguments.temperature)
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
        trainer.beta = arguments.beta = beta
    trainer.signal = LearningSignal()
    trainer.add_callback(trainer.signal)
    trainer.eos_token_ids = models.stop_ids(model.generation_config, tokenizer)
    trainer.generation_config.eos_token_id = trainer.generation_kwargs["eos_token_id"] = trainer.eos_token_ids
    return trainer


def _as_upstreams(reward: Reward) -> Any:
    def scored(
        prompts: Sequence[str], completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float]:
        given = {name: columns.pop(name) for name in _COLUMNS}
        columns.pop("prompt_ids")
        answers = Answers(prompts, given["conversation"], given["reference"], completions, completion_ids)
        return reward.score(answers, **columns)

    scored.__name__ = reward.name
    return scored

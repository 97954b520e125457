"""What a round asks the model: its prompts, as many answers as are wanted or as its tokens allow, and new tries."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_peft_recipes.data import Example
from hf_peft_recipes.feedback.asking import Policy
from hf_peft_recipes.feedback.record import FeedbackRecord, Turns, Writer, row_id
from hf_peft_recipes.feedback.samples import Sample
from hf_peft_recipes.feedback.sources.templates import fill
from hf_peft_recipes.rounds.settings import Rounds

_AT_A_TIME = 64
"""Prompts between two looks at how many tokens are spent."""


class Tokens:
    """How many tokens a round may still write."""

    def __init__(self, tokenizer: Any, limit: int | None) -> None:
        """Args:
        tokenizer: of the model.
        limit: for all of the round; None for none.
        """
        self._tokenizer = tokenizer
        self._limit = limit
        self.spent = 0

    @property
    def is_spent(self) -> bool:
        """Whether no more may be written."""
        return self._limit is not None and self.spent >= self._limit

    def count(self, answer: str) -> int:
        """Return the tokens of an answer, its end token included, and take note of them."""
        tokens = len(self._tokenizer(answer, add_special_tokens=False).input_ids) + 1
        self.spent += tokens
        return tokens


def pick_rows(examples: Sequence[Example], number: int | None, round_number: int, seed: int) -> list[Example]:
    """Return the rows of a round: all, or so many that no row comes again before every row has come.

    Args:
        examples: all training rows.
        number: how many a round takes; None for all.
        round_number: from 1.
        seed: of their order.
    """
    if number is None or number >= len(examples):
        return list(examples)
    first = (round_number - 1) * number
    found: list[Example] = []
    for at in range(first, first + number):
        turn, place = divmod(at, len(examples))
        order = random.Random(f"{seed}:{turn}").sample(range(len(examples)), len(examples))
        found.append(examples[order[place]])
    return found


@dataclass(frozen=True)
class _Question:
    """What is asked of the model, and how its answers are known."""

    conversation: Turns
    stem: str
    """Of the ids of its answers."""
    sample: Sample
    """One of its answers, but for what the model says."""

    def answered(self, answer: str, number: int, tokens: int) -> Sample:
        """Return the answer of this number."""
        return replace(self.sample, id=f"{self.stem}-{number}", completion=answer, tokens=tokens)


class Drawing:
    """Draws the answers of one round."""

    def __init__(
        self, policy: Policy, settings: Rounds, sampling: Mapping[str, Any], writer: Writer, tokens: Tokens, seed: int
    ) -> None:
        """Args:
        policy: the model.
        settings: of the recipe.
        sampling: how answers are drawn, decided to the last value.
        writer: which model it is.
        tokens: that may be written.
        seed: of the round.
        """
        self._policy = policy
        self._settings = settings
        self._sampling = sampling
        self._writer = writer
        self._tokens = tokens
        self._seed = seed

    def answers(self, examples: Sequence[Example], round_number: int) -> list[Sample]:
        """Return the model's answers to rows.

        Where the round's tokens are limited, rows are answered again and again until these are spent: so two recipes
        can be compared on equal terms.

        Args:
            examples: rows of the round.
            round_number: from 1.
        """
        questions = []
        for example in examples:
            prompt = turns_of(example)
            known = row_id(prompt, example.reference)
            sample = self._blank(known, prompt, example.reference, round_number)
            questions.append(_Question(prompt, f"r{round_number}-{known}", sample))
        found, number = list[Sample](), self._settings.samples
        passes = 1 if self._settings.generated_tokens is None else max(1, self._settings.generated_tokens)
        for turn in range(passes):
            if turn and self._tokens.is_spent:
                break
            found += self._draw(questions, number, turn * number)
        return found

    def refinements(self, wrong: Sequence[tuple[Sample, FeedbackRecord]], step: int) -> list[Sample]:
        """Return new tries at answers that were not accepted, in the light of what was said of them.

        Args:
            wrong: answers, each with its record.
            step: from 1: the first try at them, or one at what is still wrong.
        """
        questions = []
        for sample, record in wrong:
            blank = self._blank(sample.row_id, sample.prompt, sample.reference, sample.round)
            blank = replace(blank, refines=record.id)
            questions.append(_Question(refine_turns(sample, record, self._settings), f"{sample.id}.{step}", blank))
        return self._draw(questions, self._settings.refinements, 0)

    def _blank(self, known: str, prompt: Turns, reference: str | None, round_number: int | None) -> Sample:
        sampling = {**self._sampling, "seed": self._seed}
        return Sample("", known, prompt, "", reference, round=round_number, model=self._writer, sampling=sampling)

    def _draw(self, questions: Sequence[_Question], number: int, first: int) -> list[Sample]:
        found: list[Sample] = []
        for start in range(0, len(questions), _AT_A_TIME):
            if self._tokens.is_spent:
                break
            some = questions[start : start + _AT_A_TIME]
            seed = seed_of(self._seed, some[0].stem, first)
            conversations = [question.conversation for question in some]
            drawn = self._policy.answer(conversations, number, self._sampling, seed)
            for question, answers in zip(some, drawn, strict=True):
                for at, answer in enumerate(answers):
                    # What goes beyond the limit is not used, so that two recipes come to the same number.
                    if not self._tokens.is_spent:
                        found.append(question.answered(answer, first + at, self._tokens.count(answer)))
        return found


def refine_turns(sample: Sample, record: FeedbackRecord, settings: Rounds) -> Turns:
    """Return the conversation in which a new try is asked for: the last turn says all of it.

    Args:
        sample: that was not accepted.
        record: what was said of it.
        settings: with the template.
    """
    said = {
        "prompt": sample.prompt[-1]["content"],
        "completion": sample.completion,
        "feedback": record.feedback or "It is not right.",
        "reference": sample.reference or "",
    }
    return (*sample.prompt[:-1], {"role": "user", "content": fill(settings.refine_template, said)})


def turns_of(example: Example) -> Turns:
    """Return the turns before a row's answer."""
    return tuple({"role": str(turn["role"]), "content": str(turn["content"])} for turn in example.before_reference)


def seed_of(*told: Any) -> int:
    """Return a seed of its own for each thing that is drawn, the same whenever it is drawn."""
    return int.from_bytes(hashlib.sha256(repr(told).encode()).digest()[:4], "big")

"""What all rounds of a run share: recipe, rows, source of feedback; and the model of a round, opened."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes import adapters, models, trained
from hf_peft_recipes.data import Check, Example, Renderer
from hf_peft_recipes.data.formats import BadRowError
from hf_peft_recipes.data.reading import Examples
from hf_peft_recipes.data.tokenization import Fingerprints
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.evaluation import answer_tokens, evaluation_section, find_task
from hf_peft_recipes.feedback.asking import Source
from hf_peft_recipes.feedback.journal import Journal
from hf_peft_recipes.feedback.record import Turns, Writer
from hf_peft_recipes.fingerprint import fingerprint, local_reader
from hf_peft_recipes.heads import find_head
from hf_peft_recipes.preflight import Examined, RunRequest
from hf_peft_recipes.rounds.folder import journal_path
from hf_peft_recipes.rounds.settings import Rounds
from hf_peft_recipes.rows import tokenize
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts
from hf_peft_recipes.trained import TrainedModel


@dataclass(frozen=True)
class Course:
    """What all rounds share."""

    recipe: ResolvedRecipe
    settings: Rounds
    source: Source
    folder: Path
    renderer: Renderer
    checks: Sequence[Check]
    ledger: dict[str, Any]
    max_length: int | None
    rows: list[Example]
    """To be answered in training."""
    held_out: list[Example]
    task: str
    evaluation: dict[str, Any]
    """The recipe's section of that name."""
    sampling: dict[str, Any]
    base: Writer
    """The model without an adapter."""

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.recipe.value("training.seed") or 0)

    @property
    def is_bf16(self) -> bool:
        """Whether the model multiplies under autocast, as it is trained."""
        return bool(self.recipe.value("training.bf16"))

    def fits(self, turns: Turns) -> bool:
        """Return whether a conversation leaves room for an answer.

        Args:
            turns: up to the answer.
        """
        return self.max_length is None or len(self.renderer.serve(turns)) < self.max_length

    @property
    def journal(self) -> Journal:
        """All feedback of the run."""
        return Journal(journal_path(self.folder))


def make_course(
    recipe: ResolvedRecipe, settings: Rounds, source: Source, request: RunRequest, examined: Examined
) -> Course:
    """Return what all rounds share; no weights are loaded.

    Raises:
        UserError: rows that cannot be answered or scored, or none that are held out.
    """
    examples = examined.examples
    if not examples.held_out:
        raise UserError(
            "rounds are kept by held-out rows, and there are none (data.validation_size, evaluation.max_rows)"
        )
    tokenized = tokenize(recipe, request, examples)
    renderer = tokenized.renderer
    assert isinstance(renderer, Renderer), "what answers has a renderer"
    rows = training_rows(examples, renderer, tokenized.max_length)
    if source.needs_reference and any(example.reference is None for example in rows):
        raise UserError(
            f"{source.name} holds answers against a reference, and data set {examples.name!r} has rows without: name "
            "its column, --data.columns.prompt … --data.columns.completion …"
        )
    section = evaluation_section(recipe)
    sampling = dict(settings.sampling)
    if sampling.get("max_new_tokens") is None:
        sampling["max_new_tokens"] = _longest(renderer, rows, section)
    files, commit = models.base_files(recipe.section("model"))
    found = fingerprint(local_reader(files), models.base_location(recipe.section("model")), commit)
    revision = commit or hashlib.sha256(found.to_json().encode()).hexdigest()[:16]
    return Course(
        recipe, settings, source, examined.output_dir, renderer, tokenized.checks, tokenized.rows.ledger(),
        tokenized.max_length, rows, examples.held_out,
        find_task(examples.held_out, section["task"], objective_facts(recipe.objective).head), section, sampling,
        Writer(models.base_location(recipe.section("model")), revision),
    )  # fmt: skip


def training_rows(examples: Examples, renderer: Renderer, max_length: int | None) -> list[Example]:
    """Return the rows that may be learned from: none that is held out, here or elsewhere, and none that is too long.

    Args:
        examples: of the run.
        renderer: that serves them.
        max_length: tokens of a row; None for no limit.
    """
    held = Fingerprints.of([*examples.given, *examples.set_aside, *examples.held_out, *examples.validation])
    found = []
    for example in (row for source in examples.sources for row in source.corpus):
        if held.find(example) is not None:
            continue
        if example.tools or any(set(turn) - {"role", "content"} for turn in example.before_reference):
            raise UserError(
                f"data set {examples.name!r} has rows with tools, whose calls a record of feedback has no room for"
            )
        try:
            length = len(renderer.prompt(example))
        except BadRowError:
            # Counted by the ledger, which read the same rows.
            continue
        if max_length is None or length < max_length:
            found.append(example)
    if not found:
        raise UserError(f"data set {examples.name!r} has no row that a round could ask")
    return found


def _longest(renderer: Renderer, rows: Sequence[Example], section: Mapping[str, Any]) -> int:
    answered = [example for example in rows if example.reference is not None]
    if not answered and not section.get("max_new_tokens"):
        raise UserError(
            "--feedback.sampling.max_new_tokens is missing: the rows have no answers that tell how long one is"
        )
    return answer_tokens(renderer.tokenizer, answered, section)


def open_model(course: Course, run: Path | None, record: Mapping[str, Any] | None) -> tuple[TrainedModel, Writer]:
    """Return the model of a round, loaded, and what its answers are marked with.

    Args:
        course: of the run.
        run: the folder of the round's training; None for the model that the first round begins with.
        record: of that run.
    """
    recipe, stops = course.recipe, sorted(course.renderer.stop_ids)
    model = trained.load(run, recipe, record).model if run and record else _load_start(course)
    folder = run or named_adapter(recipe)
    return TrainedModel(model, course.renderer, stops, recipe), _writer(course, folder)


def _load_start(course: Course) -> Any:
    recipe, head = course.recipe, find_head(course.recipe.objective)
    model = models.load_base(
        head.model_class(), recipe.section("model"), recipe.section("quantization"),
        head.loading((), course.renderer.tokenizer), course.seed,
    )  # fmt: skip
    if folder := named_adapter(recipe):
        model = adapters.load_adapter(model, folder)
    else:
        adapters.fit_vocabulary(model, course.renderer.tokenizer)
    return model.eval()


def named_adapter(recipe: ResolvedRecipe) -> Path | None:
    """Return the folder of the adapter that the recipe goes on with, None where it names none."""
    named = recipe.value("adapter.adapter_name_or_path")
    return Path(str(named)) if named else None


def _writer(course: Course, folder: Path | None) -> Writer:
    """Return the name of a model by the content of its weights."""
    if folder is None:
        return course.base
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Writer(course.base.base, course.base.revision, digest.hexdigest()[:16])

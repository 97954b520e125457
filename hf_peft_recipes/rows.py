"""The rows of one run as its base will see them: token ids and labels, proved to be what is served, and the ledger.

No weights are loaded: a base's config, generation config and tokenizer say all that is needed.
"""

from dataclasses import dataclass

from hf_peft_recipes import data, models
from hf_peft_recipes.data import (
    ENCODERS,
    SAMPLE,
    Check,
    Encoder,
    Maker,
    PreparedData,
    Renderer,
    find_labels,
    require,
    require_serving,
)
from hf_peft_recipes.data.reading import Examples
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.preflight import RunRequest
from hf_peft_recipes.spec import ResolvedRecipe
from hf_peft_recipes.spec.objectives import objective_facts


@dataclass(frozen=True)
class Tokenized:
    """Data that are ready to train on."""

    renderer: Maker
    checks: list[Check]
    rows: PreparedData
    max_length: int | None
    """Tokens a row may have: as the recipe says, and never more than the base was made for."""


def tokenize(recipe: ResolvedRecipe, request: RunRequest, examples: Examples) -> Tokenized:
    """Return the rows as tokens, after the stop test.

    Raises:
        UserError: what would be trained on is not what would be served, or too many rows would be lost.
    """
    renderer, context = make_renderer(recipe, request, examples)
    section = recipe.section("data") or {}
    facts = objective_facts(recipe.objective)
    # What the model answers itself is not trained on as somebody wrote it.
    trained_on = [] if facts.is_rewarded else [row for row in examples.sample(SAMPLE) if not row.is_prompt]
    if isinstance(renderer, Encoder):
        checks = renderer.checks(trained_on)
        require(checks)
    else:
        checks = require_serving(renderer, trained_on, bool(section["fix"]))
    max_length = _max_length(recipe, context)
    tokens = data.tokenize(examples, renderer, max_length, section, recipe.value("training.seed") or 0, recipe.shape)
    return Tokenized(renderer, checks, tokens, max_length)


def _max_length(recipe: ResolvedRecipe, context: int | None) -> int | None:
    """Return how many tokens a row may have; of a prompt's positions, those of its answer are left free."""
    lengths = [length for length in (recipe.value("training.max_length"), context) if length is not None]
    answer = recipe.value("training.max_completion_length")
    if not lengths or answer is None:
        return min(lengths, default=None)
    if answer >= min(lengths):
        raise UserError(
            f"training.max_completion_length {answer} leaves no room for a prompt: "
            f"the base has {min(lengths)} positions"
        )
    return int(min(lengths) - answer)


def make_renderer(recipe: ResolvedRecipe, request: RunRequest, examples: Examples) -> tuple[Maker, int | None]:
    """Return what makes token rows for the recipe's base, and how many positions that base was made for.

    Raises:
        UserError: the base has no tokenizer or config that can be read, or the rows no labels to tell apart.
    """
    section = recipe.section("model")
    tokenizer = request.tokenizer or models.load_tokenizer(section)
    if request.model is None:
        config, generation = models.load_configs(section)
    else:
        config, generation = request.model.config, getattr(request.model, "generation_config", None)
    shape = recipe.shape
    if shape in ENCODERS:
        labels = find_labels(examples, shape)
        stops = models.stop_ids(generation, tokenizer)
        return ENCODERS[shape](tokenizer, stops, labels), models.context_length(config)
    own = recipe.section("data") or {}
    separator = own["separator"]
    if separator is None:
        separator = "" if examples.joins_exactly else "\n"
    stops = models.stop_ids(generation, tokenizer)
    return Renderer(tokenizer, stops, own["loss_on"], separator), models.context_length(config)

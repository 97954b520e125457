import math

import numpy
import pytest
import torch

from hf_peft_recipes.adapters import add_adapter
from hf_peft_recipes.data import Example, Renderer
from hf_peft_recipes.data.rendering import IGNORED
from hf_peft_recipes.evaluation import TASKS, RowScore, find_task, score_rows, summarize
from hf_peft_recipes.models import load_base, load_tokenizer, stop_ids
from hf_peft_recipes.scorers import SCORERS
from hf_peft_recipes.spec.sections import CHOICES

SECTION = {"bootstrap_samples": 500, "confidence": 0.95, "max_new_tokens": 4, "batch_size": 4}


def example(question, answer):
    return Example(({"role": "user", "content": question}, {"role": "assistant", "content": answer}), 1)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return load_base(AutoModelForCausalLM, {"dtype": "float32"}, None)


@pytest.fixture(scope="module")
def renderer():
    tokenizer = load_tokenizer(None)
    return Renderer(tokenizer, [tokenizer.eos_token_id], "assistant", "\n")


def test_intervals_hold_the_value_and_cover():
    draw = numpy.random.default_rng(0)
    covered = 0
    for trial in range(100):
        right = draw.random(100) < 0.7
        scores = [RowScore(1.0, 2, "a" if ok else "b", "a" if n % 2 else "b") for n, ok in enumerate(right)]
        scores = [
            RowScore(1.0, 2, s.reference if ok else "x", s.reference) for s, ok in zip(scores, right, strict=True)
        ]
        metrics = summarize(scores, "classification", SECTION, trial)
        low, high = metrics.intervals["accuracy"]
        assert low <= metrics.values["accuracy"] <= high
        covered += low <= 0.7 <= high
    # A 95 % interval misses one time in twenty; ten misses in a hundred would be a fault (p < 0.02).
    assert covered >= 90


def test_summary_is_seeded():
    scores = [RowScore(float(n), n + 1, None, None) for n in range(10)]
    assert summarize(scores, "text", SECTION, 3).intervals == summarize(scores, "text", SECTION, 3).intervals
    assert summarize(scores, "text", SECTION, 3).intervals != summarize(scores, "text", SECTION, 4).intervals


def test_loss_is_per_token_and_perplexity_its_exponential():
    metrics = summarize([RowScore(6.0, 2, None, None), RowScore(2.0, 2, None, None)], "text", SECTION, 0)
    assert metrics.values == pytest.approx({"loss": 2.0, "perplexity": math.e**2})


@pytest.mark.parametrize(
    ("answers", "task"),
    [
        (["yes", "no"] * 10, "classification"),
        (["Yes.", "no"] * 10, "classification"),
        (["yes"] * 20, "exact_match"),
        ([str(n) for n in range(20)], "exact_match"),
        (["yes", "x" * 40] * 10, "text"),
        ([f"{n} and {n} is {2 * n}.\n#### {2 * n}" for n in range(9)], "numeric"),
        (
            [f"{n} and {n} is {2 * n}.\n#### {2 * n}" for n in range(9)] + ["It is 5, I am sure of it; but see above."],
            "text",
        ),
        (["Ann: person; New York: place", "none", "Bo: person"] * 9, "entities"),
        (["Label: good", "Label: bad"] * 9, "classification"),
        ([f"Total: {n}" for n in range(9)], "exact_match"),
    ],
)
def test_the_task_is_found(answers, task):
    assert find_task([example("q", answer) for answer in answers], "auto") == task
    assert find_task([example("q", answer) for answer in answers], "text") == "text"


def test_every_task_can_be_named():
    # What a head decides is not asked for.
    assert set(CHOICES["evaluation", "task"]) == {"auto", *TASKS} - {"tags", "scored"}


def test_plain_text_has_no_answers():
    assert find_task([Example(text="x")] * 9, "auto") == "text"


def test_scores_are_those_of_the_rows_alone(model, renderer):
    rows = [example("short", "one"), example("a much longer question " * 5, "two words"), example("mid size", "x" * 9)]
    together = score_rows(
        model, renderer, rows, "text", SECTION, stop_ids(model.generation_config, renderer.tokenizer), None
    )
    for row, score in zip(rows, together, strict=True):
        made = renderer.row(row)
        labels = torch.tensor([made.labels])
        loss = model(input_ids=torch.tensor([made.input_ids]), labels=labels, use_cache=False).loss.item()
        count = int((labels[:, 1:] != IGNORED).sum())
        assert score.tokens == count
        assert score.negative_log_likelihood == pytest.approx(loss * count, rel=1e-4)


def test_virtual_tokens_move_no_target(renderer):
    from transformers import AutoModelForCausalLM

    base = load_base(AutoModelForCausalLM, {"dtype": "float32"}, None)
    tuned = add_adapter(base, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5}, "CAUSAL_LM").eval()
    rows = [example("short", "one"), example("a longer question", "two words")]
    for row, score in zip(rows, score_rows(tuned, renderer, rows, "text", SECTION, [4], None), strict=True):
        made = renderer.row(row)
        labels = torch.tensor([made.labels])
        loss = tuned(input_ids=torch.tensor([made.input_ids]), labels=labels, use_cache=False).loss.item()
        assert score.negative_log_likelihood == pytest.approx(loss * score.tokens, rel=1e-4)


def test_batched_answers_are_those_of_one_at_a_time(model, renderer):
    stops = stop_ids(model.generation_config, renderer.tokenizer)
    rows = [example("The soup was " + "very " * n + "cold.", "x") for n in range(6)]
    together = score_rows(model, renderer, rows, "exact_match", SECTION, stops, None)
    alone = [score_rows(model, renderer, [row], "exact_match", SECTION, stops, None)[0] for row in rows]
    assert [score.answer for score in together] == [score.answer for score in alone]


def test_evaluation_leaves_the_model_as_it_was(model, renderer):
    model.train()
    score_rows(model, renderer, [example("q", "a")], "exact_match", SECTION, [4], None)
    assert model.training
    model.eval()


def test_scorers():
    assert SCORERS["exact"]("a  b\n", "a b") == 1.0
    assert SCORERS["exact"]("A b", "a b") == 0.0
    assert SCORERS["label"](" Positive.", "positive") == 1.0
    assert SCORERS["label"]("positive, I think", "positive") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("She has 3 left.\n#### 3", "#### 3", 1.0),
        ("So 2 + 3 = 5. The answer is 5.", "2 + 3 = <<2+3=5>>5\n#### 5", 1.0),
        ("#### 5\nThat is 1 more than 4.", "5", 1.0),
        ("It costs $1,234.50.", "1234.5", 1.0),
        ("7.0", "7", 1.0),
        ("It fell to -3 degrees", "-3", 1.0),
        ("\u22123", "-3", 1.0),
        ("from 5-3", "3", 1.0),
        ("1, 2, 3", "3", 1.0),
        ("1,2345", "2345", 1.0),
        ("2e-4", "0.0002", 1.0),
        ("#### none", "#### 4", 0.0),
        ("", "4", 0.0),
        ("no number", "no number", 0.0),
        ("1234", "1,235", 0.0),
        ("9" * 400 + "." + "9" * 400, "9", 0.0),
    ],
)
def test_numbers_at_the_end(answer, reference, right):
    assert SCORERS["numeric"](answer, reference) == right

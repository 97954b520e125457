"""Preference optimisation: the right tokens compared, against the right reference, and better than before."""

import json

import numpy as np
import pytest
import torch
from conftest import FAST

from hf_peft_recipes import get_recipe
from hf_peft_recipes.data.rendering import IGNORED, TokenRow
from hf_peft_recipes.data.shapes import Judged, Pair
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.evaluation.likelihoods import judged_metrics
from hf_peft_recipes.objectives.collation import JudgedCollator, PairCollator, SideCollator

PAIRED = ("dpo", "orpo", "cpo", "simpo")
OBJECTIVES = (*PAIRED, "kto")


def side(prompt, answer):
    return TokenRow([*prompt, *answer], [IGNORED] * len(prompt) + answer)


def test_a_pair_is_cut_on_both_sides_and_lost_where_an_answer_is():
    pair = Pair(side([1, 2], [3, 4, 5]), side([1, 2], [6]))
    assert (pair.length, pair.supervised) == (5, 4)
    (cut,) = pair.cut(3, True)
    assert cut.columns() == {
        "chosen_input_ids": [1, 2, 3], "chosen_labels": [-100, -100, 3],
        "rejected_input_ids": [1, 2, 6], "rejected_labels": [-100, -100, 6],
    }  # fmt: skip
    assert pair.cut(2, False) == []
    assert Judged(side([1, 2], [3]), True).cut(2, False) == []


def test_wanted_answers_come_first_and_only_their_tokens_count():
    rows = [Pair(side([1], [2, 3]), side([1], [4])).columns(), Pair(side([5, 6], [7]), side([5, 6], [8])).columns()]
    batch = {name: value[:, :3] for name, value in PairCollator(0)(rows).items()}
    assert batch["input_ids"].tolist() == [[1, 2, 3], [5, 6, 7], [1, 4, 0], [5, 6, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert batch["completion_mask"].tolist() == [[0, 1, 1], [0, 0, 1], [0, 1, 0], [0, 0, 1]]
    apart = {name: value[:, :3] for name, value in SideCollator(0)(rows).items()}
    assert apart["rejected_input_ids"].tolist() == [[1, 4, 0], [5, 6, 8]]
    assert apart["rejected_labels"].tolist() == [[-100, 4, -100], [-100, -100, 8]]
    assert apart["chosen_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_each_prompt_is_joined_with_the_answer_before_for_the_divergence():
    rows = [Judged(side([1], [2, 3]), True).columns(), Judged(side([5, 6], [7]), False).columns()]
    batch = JudgedCollator(0)(rows)
    # Widths are multiples of eight.
    assert batch["KL_input_ids"].shape == (2, 8)
    assert batch["KL_input_ids"][:, :4].tolist() == [[1, 7, 0, 0], [5, 6, 2, 3]]
    assert batch["KL_completion_mask"][:, :4].tolist() == [[0, 1, 0, 0], [0, 0, 1, 1]]
    assert batch["label"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "rows", "told"),
    [
        ("qlora", {"prompt": "a", "chosen": "b", "rejected": "c"}, r"preference data, which sft .* did you mean qlora\+dpo\?"),
        ("lora", {"prompt": "a", "completion": "b", "label": True}, r"feedback data, which sft .* did you mean lora\+kto\?"),
        ("lora+dpo", {"prompt": "a", "completion": "b"}, r"prompt_completion data, which dpo .* did you mean lora\+sft\?"),
        ("pretrain", {"question": "a", "answer": "b"}, r"question_answer data, which pretrain .* did you mean lora\+sft\?"),
    ],
)  # fmt: skip
def test_data_of_another_objective_are_told_as_such(name, rows, told, tmp_path):
    with pytest.raises(UserError, match=told):
        get_recipe(name, dataset=[rows] * 4).train(tmp_path / "out")


@pytest.mark.parametrize(
    ("setting", "told"), [({"overlong": "split"}, "would tear an answer"), ({"loss_on": "all"}, "no difference")]
)
def test_settings_that_mean_nothing_for_pairs_are_refused(setting, told, tmp_path):
    with pytest.raises(UserError, match=told):
        get_recipe("dpo", data=setting).train(tmp_path / "out")


def test_a_completion_may_have_several_turns_and_users_words_do_not_count():
    def turn(role, content):
        return {"role": role, "content": content}

    chosen = [turn("assistant", "two"), turn("user", "three"), turn("assistant", "four")]
    rows = [
        {"prompt": [turn("user", f"one {at}")], "chosen": chosen, "rejected": [turn("assistant", "five")]}
        for at in range(9)
    ]
    trainer = get_recipe("dpo", dataset=rows, **FAST).build_trainer()
    row = trainer.train_dataset[0]
    labels = [label for label in row["chosen_labels"] if label != IGNORED]
    said = trainer.processing_class.decode(labels)
    assert "two" in said and "four" in said and "three" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [pytest.param(name, marks=() if name == "dpo" else pytest.mark.slow_sweep) for name in OBJECTIVES]
)
def test_every_preference_objective_beats_its_base(objective, tmp_path):
    result = get_recipe(objective, max_steps=40, **{**FAST, "evaluation.max_rows": 100}).train(
        tmp_path / "out", progress=False
    )
    before, after = result.record["metrics"]["before"], result.record["metrics"]["after"]
    metric = "reward_auc" if objective == "kto" else "preference_accuracy"
    assert after[metric] > max(before.get(metric, 0.5), 0.5) + 0.2, (before, after)
    assert after["reward_margin"] > 0
    low, _ = result.record["metrics"]["intervals"]["after"][metric]
    assert low > before.get(metric, 0.5)


@pytest.mark.slow
def test_the_reference_is_the_adapter_that_training_goes_on_from(tmp_path):
    get_recipe("lora", max_steps=12, learning_rate=1e-3, **{**FAST, "certify": "off"}).train(tmp_path / "sft")
    options = {
        **FAST,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "certify": "auto",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    recipe = get_recipe("dpo", adapter=str(tmp_path / "sft"), **options)
    trainer = recipe.build_trainer(tmp_path / "unused")
    batch = next(iter(trainer.get_eval_dataloader()))
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
    expected = _log_probabilities(tmp_path / "sft", batch)
    # Products in bfloat16 are rounded otherwise from processor to processor; the base is ten times as far away.
    assert torch.allclose(torch.cat([chosen, rejected]), expected, atol=4e-2, rtol=1e-3)
    # And not the base.
    assert not torch.allclose(expected, _log_probabilities(tmp_path / "sft", batch, adapter=False), atol=0.1)

    result = recipe.train(tmp_path / "dpo", progress=False)
    assert result.record["certificate"]["status"] == "passed"
    assert not list((tmp_path / "dpo").glob("ref*"))
    written = json.loads((tmp_path / "dpo" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"]


def _log_probabilities(folder, batch, adapter=True):
    """Return the summed log-probability of each answer, by plain peft and torch."""
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    if not adapter:
        model = model.unload()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    said = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (said * batch["completion_mask"][:, 1:]).sum(1)


def test_the_area_under_the_curve_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    gains, wanted = random.normal(size=40).round(1), random.random(40) < 0.4
    chosen = random.integers(0, 40, size=(20, 40))
    counts = np.array([np.bincount(some, minlength=40) for some in chosen])
    found = judged_metrics(gains, wanted, counts)
    expected = [roc_auc_score(wanted[some], gains[some]) for some in chosen]
    assert found["reward_auc"] == pytest.approx(expected)
    differences = [gains[some][wanted[some]].mean() - gains[some][~wanted[some]].mean() for some in chosen]
    assert found["reward_margin"] == pytest.approx(differences)

"""Learning from rewards: prompts as they are served, rewards that are held to what they return, and a model that learns."""

import json
import math

import jsonschema
import pytest
import torch
from conftest import FAST

from hf_peft_recipes import get_recipe
from hf_peft_recipes.data import Renderer
from hf_peft_recipes.data.formats import detect_format
from hf_peft_recipes.embedded import DATA_DIR, MODEL_DIR
from hf_peft_recipes.errors import NotTrainedError, RewardError, UserError
from hf_peft_recipes.objectives.learning_signal import LearningSignal
from hf_peft_recipes.results import read_schema
from hf_peft_recipes.scorers.configured import read_scorers
from hf_peft_recipes.scorers.rewards import Answers, Reward

SMALL = {
    **FAST, "evaluation.max_rows": 4, "max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 2,
    "gradient_accumulation_steps": 1, "max_completion_length": 8,
}  # fmt: skip
CONVERSATION = json.dumps([{"role": "user", "content": "How many?"}])


def reward(entry, weight=1.0, **functions):
    return Reward(read_scorers([entry], "a test", functions)[0], weight)


def answers(*texts, conversation=None, reference="2"):
    number = len(texts)
    return Answers(["How many?"] * number, [conversation] * number, [reference] * number, texts, [[1]] * number)


def test_a_scorer_and_a_function_give_a_number_an_answer():
    assert reward("exact").score(answers("2", " 2 ", "3")) == [1, 1, 0]
    told = {}

    def words(prompts, completions, completion_ids, reference, **further):
        told.update(prompts=prompts, completions=completions, reference=reference, **further)
        return [len(text) for text in completions]

    assert reward("t:words", **{"t:words": words}).score(answers("2", "22"), trainer_state=None) == [1, 2]
    assert told["prompts"] == ["How many?"] * 2 and told["reference"] == ["2", "2"]


def test_a_function_is_handed_conversations_where_there_is_a_template():
    def said(prompts, completions, **_):
        return [len(prompt[0]["content"]) + len(answer[0]["content"]) for prompt, answer in zip(prompts, completions)]  # noqa: B905

    assert reward("t:said", **{"t:said": said}).score(answers("2", "22", conversation=CONVERSATION)) == [10, 11]


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda completions, **_: [1 / (text != "3") for text in completions], "raised ZeroDivisionError.* answer '3'"),
        (lambda completions, **_: [1.0, math.nan, 1.0], "returned nan, on the answer '3' to 'How many\\?'"),
        (lambda completions, **_: [math.inf, 1.0, 1.0], "returned inf, on the answer '2'"),
        (lambda completions, **_: [1.0, None, 1.0], "returned None, not a number, on the answer '3'"),
        (lambda completions, **_: ["a", "b", "c"], "returned 'a', not a number"),
        (lambda completions, **_: [1.0], "returned 1 values for 3 answers"),
        (lambda completions, **_: 1.0, "returned float, not a list of numbers"),
        (lambda completions: [1.0, 1.0, 1.0], "raised TypeError"),
    ],
)
def test_a_function_that_fails_ends_the_run_and_names_itself_and_the_row(function, told):
    with pytest.raises(RewardError, match=f"reward 'f' {told}"):
        reward("t:f", **{"t:f": function}).score(answers("2", "3", "4"))


def test_a_scorer_that_raises_names_the_row():
    with pytest.raises(
        RewardError, match=r"reward 'regex' raised .*missing \), .*on the answer '2'.* \(reference '\('\)"
    ):
        reward("regex").score(answers("2", reference="("))


def test_no_difference_in_any_group_is_said_once():
    signal, same = LearningSignal(), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    warnings = [signal.note(same) for _ in range(2 * LearningSignal.WARNED_AFTER)]
    assert [warning is not None for warning in warnings].index(True) == LearningSignal.WARNED_AFTER - 1
    assert sum(warning is not None for warning in warnings) == 1
    assert "(0 to 1)" in signal.result()["warning"]
    other = LearningSignal()
    other.note(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    assert [other.note(same) for _ in range(2 * LearningSignal.WARNED_AFTER)] == [
        None
    ] * 2 * LearningSignal.WARNED_AFTER
    assert other.result()["groups_with_differences"] == 1


@pytest.mark.parametrize("template", [True, False])
def test_prompts_are_the_tokens_that_are_served_and_answers_stop_where_the_run_stops(template, rows, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    if not template:
        tokenizer.chat_template = None
        # Plain tokenizers add tokens of their own; prompts that are tokenised anew would have them twice, or not at all.
        tokenizer.add_bos_token = True
    trainer = get_recipe("grpo", dataset=rows, model=str(MODEL_DIR), tokenizer=tokenizer, rewards=["exact"], **SMALL)
    trainer = trainer.build_trainer(tmp_path)
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id], "auto", "\n")
    asked = [[{"role": "user", "content": row["question"]}] for row in rows]
    served = {tuple(renderer.serve(messages)) for messages in asked}
    trainer.model.train()
    fed = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    prompts = {
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(fed["prompt_ids"], fed["prompt_mask"], strict=True)
    }
    assert prompts <= served and len(prompts) == 2
    assert trainer.eos_token_ids == trainer.generation_config.eos_token_id == [tokenizer.eos_token_id]


def test_the_reference_of_a_whole_model_is_a_copy_of_it(tmp_path):
    trainer = get_recipe("full+rloo", **SMALL).build_trainer(tmp_path)
    assert trainer.beta == trainer.args.beta == 0.05
    pairs = zip(trainer.model.parameters(), trainer.ref_model.parameters(), strict=True)
    assert all(torch.equal(own, copy) and own is not copy and not copy.requires_grad for own, copy in pairs)


def broken(completions, **_):
    return [math.nan] * len(completions)


def unmoved(completions, **_):
    return [0.5] * len(completions)


def test_a_reward_that_fails_while_it_trains_is_in_the_record(tmp_path):
    recipe = get_recipe("grpo", **{**SMALL, "evaluation.max_rows": 0, "rewards": [broken]})
    with pytest.raises(RewardError, match="reward 'broken' returned nan"):
        recipe.train(tmp_path / "out", progress=False)
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 3)
    assert record["error"].startswith("RewardError: reward 'broken'")


def test_a_run_without_any_difference_is_not_called_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(LearningSignal, "WARNED_AFTER", 2)
    recipe = get_recipe(
        "rloo", **{**SMALL, "evaluation.max_rows": 0, "beta": 0.0, "max_steps": 3, "rewards": [unmoved]}
    )
    with pytest.raises(NotTrainedError, match="in all 3 updates every gradient was zero"):
        recipe.train(tmp_path / "out", progress=False)
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "no learning signal: in the first 2 batches" in record["rewards"]["warning"]
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("grpo", {"dataset": "ROWS"}, "grpo needs a reward: --rewards exact"),
        ("grpo", {"rewards": ["label"], "reward_weights": [1, 2]}, r"reward_weights \[1, 2\]: a number .* \(label\)"),
        ("grpo", {"rewards": ["no.such.module:f"]}, "cannot be imported"),
        ("grpo", {"rewards": "unit_tests"}, "--allow_code_execution allows it"),
        ("grpo", {"data.overlong": "truncate"}, "another question of a prompt; drop or error"),
        ("grpo", {"num_generations": 3}, "does not divide the 16 answers of an update .*; num_generations 2, 4, 8, 16"),
        ("rloo", {"max_completion_length": 512}, "leaves no room for a prompt: the base has 512 positions"),
        (
            "grpo",
            {"dataset": "PROMPTS", "rewards": ["exact"]},
            "prompts alone, and the reward 'exact' needs a reference",
        ),
        ("sft", {"dataset": "PROMPTS"}, r"prompt_only data, which sft does not learn from; did you mean lora\+grpo\?"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(name, settings, told, tmp_path):
    given = {
        "ROWS": [{"question": f"{at}?", "answer": f"{at}"} for at in range(9)],
        "PROMPTS": [{"prompt": f"{at}?"} for at in range(9)],
    }
    settings = {key: given.get(value, value) if key == "dataset" else value for key, value in settings.items()}
    with pytest.raises(UserError, match=told):
        get_recipe(name, **settings).train(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_rewards_belong_to_objectives_that_learn_from_them():
    with pytest.raises(UserError, match="are what grpo and rloo learn from; sft has no use for them"):
        get_recipe("lora", rewards=["label"])


def test_no_recipe_lets_code_run(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: grpo\nsummary: Mine.\nrewards: {functions: [unit_tests]}\nallow_code_execution: true\n")
    with pytest.raises(UserError, match="allow_code_execution is a decision of who runs the recipe"):
        get_recipe(str(path))
    allowed = get_recipe("grpo", rewards=["unit_tests"], allow_code_execution=True)
    assert "allow_code_execution" not in allowed.to_yaml()


def test_a_prompt_stands_alone_only_where_nothing_could_be_its_answer():
    assert detect_format(["prompt"], {}, "t").name == "prompt_only"
    assert detect_format(["prompt", "solution"], {}, "t").columns["completion"] == "solution"
    with pytest.raises(UserError, match="no format is recognised"):
        detect_format(["prompt", "judgement"], {}, "t")


def lengthy(completions, **_):
    return [len(completion[0]["content"]) for completion in completions]


def test_prompts_alone_and_functions_of_ones_own(tmp_path):
    prompts = [{"prompt": row["prompt"]} for row in map(json.loads, (DATA_DIR / "test.jsonl").open())]
    recipe = get_recipe("grpo", dataset=prompts, reward_weights=[0.1, 1], rewards=[lengthy, {"scorer": "length", "wanted": 2}], learning_rate=1e-3, **SMALL)  # fmt: skip
    record = recipe.train(tmp_path / "out", progress=False).record
    after = record["metrics"]["after"]
    assert "loss" not in after and after["reward_length"] == 0.5
    assert after["reward"] == pytest.approx(0.1 * after["reward_lengthy"] + after["reward_length"])
    assert f"{__name__}:lengthy" in (tmp_path / "out" / "recipe.yaml").read_text()


@pytest.mark.slow
def test_the_demo_learns_from_rewards(tmp_path):
    from hf_peft_recipes import trained

    settings = {"max_steps": 32, "certify": "auto", "evaluation.max_rows": 60}
    result = get_recipe("grpo", **{**FAST, **settings}).train(tmp_path / "out", progress=False)
    record = result.record
    before, after = record["metrics"]["before"], record["metrics"]["after"]
    assert after["accuracy"] == after["reward_label"] == after["reward"] > before["accuracy"] + 0.2
    assert record["proof"]["unproved"] == {} and record["certificate"]["status"] == "passed"
    assert record["rewards"]["groups_with_differences"] > 0
    assert sum(record["measured"]["series"]["supervised"]) > 0
    jsonschema.validate(record, read_schema())
    again = trained.evaluate(result.load(), record, with_base=False)
    assert again["after"]["reward"] == after["reward"]

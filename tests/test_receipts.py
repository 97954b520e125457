"""A receipt holds a machine to what a recipe did elsewhere: what is the same passes, what differs is named."""

import copy
import json
import math

import pytest

from hf_peft_recipes import get_recipe, list_recipes, registry
from hf_peft_recipes.bench.receipts import compare, make_receipt, read_receipt, receipts_folder, require
from hf_peft_recipes.errors import ReceiptError, UserError

STEPS = 2


@pytest.fixture(scope="module")
def found():
    """What a run of two steps leaves here."""
    return make_receipt("lora", STEPS)


@pytest.fixture
def receipt(found):
    """A longer receipt that begins in the same way."""
    longer = copy.deepcopy(found) | {"steps": STEPS + 1}
    for name in ("losses", "gradient_norms", "tokens", "supervised_tokens"):
        longer[name].append(longer[name][-1])
    return longer


@pytest.mark.slow
def test_a_shorter_run_is_held_to_the_first_steps(receipt, found):
    verdict = compare(receipt, found)
    assert verdict.holds and verdict.same_setting and verdict.steps == STEPS
    assert verdict.speed_ratio == 1
    assert [check.name for check in verdict.checks][-1] == "peak memory of training"
    require(verdict)
    json.dumps(verdict.shown())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: one["losses"].__setitem__(1, one["losses"][1] * 1.03), r"loss .*step 2.*within 0\.1%"),
        (lambda one: one["losses"].__setitem__(0, math.nan), r"loss .*nan"),
        (lambda one: one["gradient_norms"].__setitem__(0, one["gradient_norms"][0] * 0.9), r"gradient norm .*step 1"),
        (lambda one: one["tokens"].__setitem__(1, one["tokens"][1] + 1), r"tokens of each step .*step 2.*exactly"),
        (lambda one: one["supervised_tokens"].__setitem__(0, 0), "tokens with loss of each step 0, receipt "),
        (lambda one: one["parameters"].update(trainable=1), "trainable parameters 1, receipt "),
        (lambda one: one["peak_memory_bytes"].update(train=1), r"peak memory of training 0\.000 GiB \(-100\.0%\)"),
    ],
)
def test_what_differs_is_named(receipt, found, change, told):
    altered = copy.deepcopy(found)
    change(altered)
    verdict = compare(receipt, altered)
    assert [check.ok for check in verdict.checks].count(False) == 1
    with pytest.raises(ReceiptError, match=told):
        require(verdict)


def test_what_samples_is_held_to_its_mean_reward():
    receipt = read_receipt("grpo")
    same = compare(receipt, receipt)
    assert same.holds and "loss" not in [check.name for check in same.checks]
    worse = copy.deepcopy(receipt) | {"rewards": [value - 0.3 for value in receipt["rewards"]]}
    with pytest.raises(ReceiptError, match="mean reward"):
        require(compare(receipt, worse))


@pytest.mark.slow
def test_another_version_is_given_more_room_and_another_kind_of_device_no_figure_of_memory(receipt, found):
    receipt["versions"] = {**receipt["versions"], "torch": "2.9.0"}
    receipt["losses"] = [loss * 1.015 for loss in receipt["losses"]]
    assert compare(receipt, found).holds and not compare(receipt, found).same_setting
    receipt["hardware"]["device"]["kind"] = "cuda"
    assert "peak memory of training" not in [check.name for check in compare(receipt, found).checks]


@pytest.mark.parametrize("name", [name for name in list_recipes() if not get_recipe(name).resolved.is_in_rounds])
def test_every_recipe_that_ships_has_a_receipt(name):
    receipt = read_receipt(name)
    assert receipt["name"] == name and len(receipt["losses"]) == receipt["steps"]
    assert all(math.isfinite(loss) for loss in receipt["losses"])
    assert not receipt["commit"].endswith("-dirty")


def test_receipts_are_no_recipes():
    assert receipts_folder().is_relative_to(registry.shipped_folder())
    assert "receipts" not in list_recipes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lorra",), "did you mean 'lora'"),
        (("lora", "--steps", "1000"), "--steps 1000: the receipt of lora has 12 steps"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(command, words, message):
    finished = command("verify", *words)
    assert finished.returncode == 2
    assert message in finished.stderr and finished.stderr.count("\n") == 1


def test_a_recipe_of_ones_own_has_no_receipt(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(registry.find("lora").read(), "utf-8")
    with pytest.raises(UserError, match="has no receipt"):
        read_receipt(str(path))


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "no receipt"), ("[]", "no receipt"), ('{"schema_version": 2}', "schema version 2; this software reads 1")],
)
def test_a_broken_or_foreign_receipt_is_refused(tmp_path, content, told):
    (tmp_path / "lora.json").write_text(content, "utf-8")
    with pytest.raises(UserError, match=told):
        read_receipt("lora", tmp_path)


@pytest.mark.slow
def test_verify_says_what_holds_and_ends_with_its_code(command, tmp_path):
    finished = command("verify", "lora", "--steps", "1", "--json")
    verdict = json.loads(finished.stdout)
    assert finished.returncode == (0 if verdict["holds"] else 7), finished.stderr
    # Memory and gradient norms are for `verify` to judge: this test runs beside others, on any processor.
    certain = {check["name"]: check["ok"] for check in verdict["checks"][:5]}
    assert all(certain.values()) and "loss" in certain, verdict["checks"]

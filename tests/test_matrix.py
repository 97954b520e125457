"""Which method goes with which objective: what is refused, what was trained, and that the two agree."""

import json

import pytest

from benchmarks.matrix import RESULTS, read_lines, train_pair
from hf_peft_recipes import get_recipe
from hf_peft_recipes.api import capability_table
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec.pairings import REFUSED

TRAINED = read_lines(RESULTS)
"""Names are taken from here: to resolve all pairs takes seconds, which a worker that runs other tests need not spend."""


@pytest.fixture(scope="module")
def pairs():
    return {pair.name: pair for pair in capability_table()}


def test_the_table_that_was_trained_is_the_table_that_is_told(pairs):
    assert set(TRAINED) == set(pairs)
    refused = {name for name, pair in pairs.items() if pair.refused}
    assert {name for name, line in TRAINED.items() if line["status"] == "refused"} == refused
    assert [name for name, line in TRAINED.items() if line["status"] == "failed"] == []


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda refusal: refusal.values[0])
def test_every_refusal_is_of_a_pair_that_ships(refusal, pairs):
    told = [pair.refused for pair in pairs.values() if pair.refused and refusal.reason in pair.refused]
    assert told


def test_a_pair_is_refused_by_its_adapter_whatever_it_is_called(tmp_path):
    with pytest.raises(UserError, match="PROMPT_TUNING does not go with classify"):
        get_recipe("lora+classify", peft_type="PROMPT_TUNING", num_virtual_tokens=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qlora+kto", "lora_fp8+dpo", "vera+tag", "eva+classify", "prefix_tuning+reward"])
def test_pairs_train(name, pairs):
    assert train_pair(pairs[name])["status"] == "trained"


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("name", sorted(TRAINED))
def test_every_pair_trains_or_says_why_not(name, pairs):
    line = train_pair(pairs[name])
    assert line["status"] == ("refused" if pairs[name].refused else "trained"), line


def test_the_command_line_says_why(command, pairs):
    shown = command("list", "--matrix")
    assert shown.returncode == 0
    head, *rows = shown.stdout.splitlines()
    row = next(row for row in rows if row.startswith("prompt_tuning ")).split()
    refused = dict(zip(["method", *head.split()], row, strict=True))["classify"]
    assert any(row.startswith(f"{refused}: virtual tokens hide the ids") for row in rows)
    told = json.loads(command("list", "--matrix", "--json").stdout)
    assert {pair["name"] for pair in told} == set(pairs)

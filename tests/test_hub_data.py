"""Data sets of a Hub through our own door: the command and `read_data`, the real clients, the loopback Hub."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT
from loopback_hub import LoopbackHub
from zygote.client import MARK

READ = (
    MARK
    + """
import json, sys
from hf_peft_recipes.data.sources import read_data
from hf_peft_recipes.errors import UserError

for name in sys.argv[1:]:
    try:
        table = read_data(name).splits["train"]
        print(json.dumps([record.row["answer"] for record in table.records()][0]))
    except UserError as error:
        print(json.dumps(f"refused: {error}"))
"""
)


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as made:
        yield made


@pytest.fixture
def read(hub, tmp_path):
    """Return a function that reads data sets in a process, which all share a cache, and returns what it saw of each."""

    def run(*names, token=None, **variables):
        environment = hub.environment(token, tmp_path / "cache") | variables
        words = [sys.executable, "-c", READ, *names]
        finished = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert finished.returncode == 0, finished.stderr
        return [json.loads(line) for line in finished.stdout.splitlines()]

    return run


def lines(rows):
    """Return rows as the bytes of a JSONL file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_revision_of_a_hub_data_set_is_inspected(hub, command, rows):
    first = hub.add_repo("me/data", {"train.jsonl": lines(rows[:20])}, kind="dataset")
    hub.commit("me/data", {"train.jsonl": lines(rows[10:])})
    hub.add_repo("me/hidden", {"train.jsonl": lines(rows)}, kind="dataset", private=True)
    words = {
        f"me/data@{first}": "", "me/data@v9": "Revision 'v9' doesn't exist", "me/missing": "doesn't exist on the Hub or",
        "me/hidden": "doesn't exist on the Hub or cannot be accessed",
    }  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(command, "inspect", "lora", "--dataset", name, "--row", 0, "--json", **hub.environment())
            for name in words
        ]
    finished = dict(zip(words, (run.result() for run in runs), strict=True))
    seen = json.loads(finished.pop(f"me/data@{first}").stdout)
    assert seen["dataset"] == f"me/data@{first}" and seen["splits"]["train"] + seen["splits"]["held_out"] == 20
    assert "What is 0 plus one?" in "".join(token["text"] for token in seen["rows"][0]["tokens"])
    for name, refusal in finished.items():
        assert refusal.returncode == 2 and refusal.stdout == ""
        assert refusal.stderr.startswith(f"error: data set '{name}': ") and refusal.stderr.count("\n") == 1
        assert words[name] in refusal.stderr


def test_a_revision_is_never_another_one(hub, read, rows):
    """Where it cannot ask the Hub, `datasets` takes what its cache holds of the data set, whatever the revision."""
    first = hub.add_repo("me/data", {"train.jsonl": lines(rows[:20])}, kind="dataset")
    second = hub.commit("me/data", {"train.jsonl": lines(rows[10:])})
    named = [f"me/data@{first}", f"me/data@{second}", f"me/data@{second[:10]}", "me/data@main", "me/data"]
    assert read(*named) == ["It is 1.", "It is 11.", "It is 11.", "It is 11.", "It is 11."]
    received = len(hub.requests)
    old, new, short, main, unnamed, other = read(*named, "me/data@v9", HF_HUB_OFFLINE="1")
    assert len(hub.requests) == received
    assert new == short == main == unnamed == "It is 11."
    assert old.startswith(f"refused: data set 'me/data@{first}': ") and second in old and "\n" not in old
    assert other.startswith("refused: data set 'me/data@v9': ") and "\n" not in other


def test_a_private_data_set_of_ones_own(hub, read, rows):
    token = hub.add_user("me", "read")
    hub.add_repo("me/hidden", {"train.jsonl": lines(rows)}, kind="dataset", private=True)
    hub.add_repo("you/gated", {"train.jsonl": lines(rows[3:])}, kind="dataset", gated=True, readers=["me"])
    assert read("me/hidden", "you/gated", token=token) == ["It is 1.", "It is 4."]
    assert token not in "".join(request.path for request in hub.requests)

"""Training that publishes: asked for first, published last, and no secret anywhere."""

import base64
import json
import shlex

import pytest
from conftest import write_jsonl
from loopback_hub import LoopbackHub
from test_publishing import PUBLISHED

from hf_peft_recipes.embedded import MODEL_DIR

PLANTED = "hf_PlantedInTheRecipeAndTheFlags0123"
SECRET = "planted-in-the-environment-0123"
SHORT = (
    "--max_steps", 4, "--learning_rate", 5e-3, "--max_length", 128, "--gradient_accumulation_steps", 1, "--eval_strategy",
    "no", "--save_strategy", "steps", "--save_steps", 2, "--evaluation.max_rows", 4,
)  # fmt: skip


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as made:
        files = {path.name: path.read_bytes() for path in MODEL_DIR.iterdir() if path.is_file()}
        card = b"---\nlicense: mit\n---\nA base.\n"
        made.add_repo("me/base", {**files, "README.md": card}, gated=True)
        made.token = made.add_user("me")
        yield made


@pytest.fixture
def train(hub, command, tmp_path, rows):
    write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: lora\nsummary: With {PLANTED} in it.\n")

    def run(*words, token=True, **variables):
        environment = hub.environment(hub.token if token else None, tmp_path / "cache") | variables
        told = [recipe, "--dataset", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "out", *SHORT, *words]
        return command("train", *told, **environment, HF_PEFT_RECIPES_RETRY_SECONDS="0.01", cwd=tmp_path)

    return run


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_published_with_its_checkpoints_and_without_secrets(hub, train, tmp_path):
    told = ("--push_to_hub", "--hub_model_id", "me/trained", "--base_model", "me/base", "--push_every", "save")
    finished = train(*told, "--tag", "v1", MY_API_KEY=SECRET)
    assert finished.returncode == 0, finished.stderr
    assert "certificate: 7 of 7 checks passed in a fresh process" in finished.stdout
    assert "(licence mit, gated: who loads it must have accepted its terms)" in finished.stdout
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["push"]["status"] == "done" and record["certificate"]["status"] == "passed"
    assert record["published_checkpoints"] == {"branch": "checkpoints", "published": [2, 4], "failed": {}}
    held = hub.files("me/trained")
    assert set(held) - {".gitattributes"} == PUBLISHED
    on_branch = hub.files("me/trained", "checkpoints")
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(on_branch)
    assert not {"optimizer.pt", "training_args.bin", "rng_state.pth"} & set(on_branch)
    card = held["README.md"].decode()
    assert "license: mit" in card and "gated" in card.lower()
    assert len(hub.commits("me/trained", "checkpoints")) == 3

    bodies = [request.body for request in hub.requests]
    for line in [line for body in bodies for line in body.splitlines() if line.startswith(b'{"key":"file"')]:
        bodies.append(base64.b64decode(json.loads(line)["value"]["content"]))
    written = {**everything(tmp_path / "out"), **everything(tmp_path / "cache"), **held, **on_branch}
    written |= dict(enumerate(bodies)) | {"stdout": finished.stdout.encode(), "stderr": finished.stderr.encode()}
    secrets = [word.encode() for word in (hub.token, PLANTED, SECRET)]
    assert not {str(name) for name, content in written.items() if any(word in content for word in secrets)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--push_to_hub"], "--push_to_hub needs --hub_model_id"),
        (["--hub_model_id", "me/x"], "--hub_model_id does nothing without --push_to_hub"),
        (["--push_to_hub", "--hub_model_id", "me/x"], "--base_model user/name says which"),
        (["--hub_token", PLANTED], "hub_token is not to be set here"),
        (["--run_name", PLANTED], "training.run_name (from --run_name) holds a secret"),
    ],
)
def test_what_cannot_be_published_is_refused_before_training(hub, train, tmp_path, words, message):
    finished = train(*words)
    assert finished.returncode == 2 and message in finished.stderr, finished.stderr
    assert finished.stderr.count("\n") <= 2 and PLANTED not in finished.stderr
    assert not (tmp_path / "out").exists() and not hub.exists("me/x")


def test_a_run_whose_push_fails_is_whole(hub, train, tmp_path, command):
    hub.fail(method="POST", path=".*/commit/.*", how="500", times=None)
    told = ("--push_to_hub", "--hub_model_id", "me/late", "--base_model", "me/base", "--push_every", "save")
    finished = train(*told, "--certify", "off")
    assert finished.returncode == 5, finished.stderr
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (record["status"], record["exit_code"], record["push"]["status"]) == ("done", 5, "failed")
    assert set(record["published_checkpoints"]["failed"]) == {"2", "4"}
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    again = record["push"]["command"]
    assert again in finished.stderr
    hub.recover()
    pushed = command(*shlex.split(again)[1:], **hub.environment(hub.token, tmp_path / "cache"))
    assert pushed.returncode == 0, pushed.stderr
    assert "published: " in pushed.stdout


def test_an_adapter_is_gone_on_with(hub, train, tmp_path, command):
    first = train("--certify", "off")
    assert first.returncode == 0, first.stderr
    out = tmp_path / "out"
    environment = {**hub.environment(None, tmp_path / "cache")}
    told = ["lora", "--dataset", tmp_path / "rows.jsonl", *SHORT, "--certify", "off", "--json"]
    second = command("train", *told, "--adapter", out, "--output_dir", tmp_path / "on", **environment)
    assert second.returncode == 0, second.stderr
    before, on = json.loads((out / "result.json").read_text()), json.loads(second.stdout)
    # It begins where the first one ended, not at the base.
    assert on["metrics"]["before"]["loss"] == pytest.approx(before["metrics"]["after"]["loss"], rel=1e-3)
    for words, message in (
        (["--adapter", out, "--r", 4], "--r does nothing: the adapter in"),
        (["--adapter", tmp_path], "holds no adapter"),
        (["--adapter_name_or_path", "me/nothing"], "comes here by `hf-peft-recipes pull`"),
    ):
        refused = command("train", *told, *words, "--output_dir", tmp_path / "no", **environment)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr
        assert not (tmp_path / "no").exists()

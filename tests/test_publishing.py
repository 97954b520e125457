"""From a run to the Hub and back: the real client against a loopback Hub, with every fault at every request."""

import base64
import json
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import FAST, ROOT, write_jsonl
from loopback_hub import LoopbackHub

from hf_peft_recipes import get_recipe
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.results import read_result

PUBLISHED = {
    "adapter_model.safetensors", "adapter_config.json", "base_fingerprint.json", "certificate.json", "chat_template.jinja",
    "loss.png", "recipe.yaml", "result.json", "tokenizer.json", "tokenizer_config.json", "README.md",
}  # fmt: skip
SHORT = {**FAST, "evaluation.max_rows": 0, "max_length": 128, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return `(adapter, model)`: the folders of a short LoRA run and of a short full run, with checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"question": f"What is {n} plus one?", "answer": f"It is {n + 1}."} for n in range(40)]
    for method, rate in (("lora", 5e-3), ("full", 1e-3)):
        settings = {**SHORT, "save_strategy": "steps", "save_steps": 2}
        recipe = get_recipe(method, dataset=rows, max_steps=4, learning_rate=rate, warmup_steps=0, **settings)
        recipe.train(folder / method, progress=False)
    return folder / "lora", folder / "full"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as made:
        made.add_repo("me/base", {path.name: path.read_bytes() for path in MODEL_DIR.iterdir() if path.is_file()})
        made.token = made.add_user("me", organizations=["group"])
        made.add_user("you")
        yield made


class Driver:
    """The process of `hub_driver.py`."""

    def __init__(self, environment):
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "hub_driver.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip

    def __call__(self, verb, **told):
        self._process.stdin.write(
            json.dumps({"verb": verb, **{k: str(v) if k == "folder" else v for k, v in told.items()}})
        )
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(30) == 0


@pytest.fixture(scope="module")
def act(hub, tmp_path_factory):
    driver = Driver(
        hub.environment(hub.token, tmp_path_factory.mktemp("cache")) | {"HF_PEFT_RECIPES_RETRY_SECONDS": "0.01"}
    )
    yield driver
    driver.close()


@pytest.fixture(autouse=True)
def no_faults(hub):
    yield
    hub.recover()


def push(act, folder, name, certify=False, **options):
    return act("push", folder=folder, repo_id=name, certify=certify, options={"base_model": "me/base", **options})


def contents(folder):
    """Return what a run's folder holds, but for the account of its pushes."""
    files = {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    record = json.loads(files.pop(next(path for path in files if path.name == "result.json")))
    record.pop("push", None)
    return files, record


def readme_commands():
    """Return the commands of the README's section on publishing, without the program's name."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Publish")[1].split("## ")[0]
    block = section.split("```bash\n")[1].split("```")[0]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]


def test_what_the_readme_says(hub, runs, tmp_path, command, rows):
    hub.add_user("user")
    hub.add_repo("user/base", {path.name: path.read_bytes() for path in MODEL_DIR.iterdir() if path.is_file()})
    shutil.copytree(runs[0], tmp_path / "out")
    write_jsonl(tmp_path / "questions.jsonl", rows)
    (tmp_path / "mine.yaml").write_text("extends: lora\nsummary: Mine.\n")
    before = contents(tmp_path / "out")
    # Another machine: an empty cache, nothing but the name.
    environment = hub.environment(hub.token, tmp_path / "cache")
    told = {}
    for words in readme_commands():
        shortened = [*words, "--dry_run"] if words[0] == "train" else words
        finished = command(*shortened, cwd=tmp_path, **environment)
        assert finished.returncode == 0, (words, finished.stderr)
        told[words[0]] = finished.stdout
    assert "certificate: 7 of 7 checks passed in a fresh process" in told["push"]
    assert told["certify"].endswith("passed: me/name\n") and "me/recipe" in told["list"] and "me/name" in told["list"]
    assert contents(tmp_path / "out") == before
    held, pushed = hub.files("me/name"), read_result(tmp_path / "out")["push"]
    assert set(held) - {".gitattributes"} == PUBLISHED == set(pushed["files"]) and pushed["status"] == "done"
    assert hub.refs("me/name")["refs/tags/v1"] == pushed["commit"] == hub.refs("me/name")["refs/heads/main"]
    assert len(hub.commits("me/name")) == 2, "one commit beside the one that makes the repository"
    config = json.loads(held["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (
        "user/base",
        hub.refs("user/base")["refs/heads/main"],
    )
    answered = command("chat", "copy", "--prompt", "What is 3 plus one?", "--json", cwd=tmp_path, **environment)
    from hf_peft_recipes import RunResult, trained

    here = trained.answer(
        RunResult.read(runs[0]).load(), [{"role": "user", "content": "What is 3 plus one?"}], 256, lambda _: None
    )
    assert json.loads(answered.stdout)["answer"] == here


def test_nothing_of_this_machine_goes_up(hub, act, runs, tmp_path):
    folder = shutil.copytree(runs[0], tmp_path / "planted-folder")
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "notes.txt", "README.md"):
        (folder / name).write_bytes(b"planted-content")
    received = len(hub.requests)
    assert "result" in push(act, folder, "me/clean")
    held = hub.files("me/clean")
    assert set(held) - {".gitattributes"} == PUBLISHED
    private = [
        b"planted-content",
        str(folder).encode(),
        str(runs[0]).encode(),
        str(MODEL_DIR).encode(),
        hub.token.encode(),
    ]
    bodies = [request.body for request in hub.requests[received:]]
    for line in [line for body in bodies for line in body.splitlines() if line.startswith(b'{"key":"file"')]:
        bodies.append(base64.b64decode(json.loads(line)["value"]["content"]))
    for content in [*held.values(), *bodies]:
        assert not [word for word in private if word in content]
    record = json.loads(held["result.json"])
    assert (
        record["base_model"] == "me/base" and record["output_dir"] == "me/clean" and "examples" not in record["metrics"]
    )


def test_pushing_again_changes_nothing(hub, act, runs):
    first = push(act, runs[0], "me/again")["result"]
    commits = len(hub.commits("me/again"))
    second = push(act, runs[0], "me/again")["result"]
    assert second["already_there"] and second["commit"] == first["commit"]
    assert len(hub.commits("me/again")) == commits
    # What somebody else adds stays; what of ours has become stale goes, in one commit.
    hub.commit("me/again", {"NOTES.md": b"mine", "model-00001-of-00002.safetensors": b"stale"})
    third = push(act, runs[0], "me/again")["result"]
    assert set(hub.files("me/again")) - {".gitattributes"} == PUBLISHED | {"NOTES.md"}
    assert len(hub.commits("me/again")) == commits + 2 and not third["already_there"]


def test_a_whole_model_and_a_local_base_go_up(hub, act, runs):
    outcome = act("push", folder=runs[1], repo_id="group/whole", options={"push_base": True})["result"]
    assert outcome["certificate"]["status"] == "passed", outcome["certificate"]
    held, base = hub.files("group/whole"), hub.files("group/whole-base")
    assert "model.safetensors" in held and "adapter_config.json" not in held
    assert base["model.safetensors"] == (MODEL_DIR / "model.safetensors").read_bytes()
    card = held["README.md"].decode()
    assert "base_model: group/whole-base" in card and "base_model_relation: finetune" in card


def test_a_merged_model_goes_up(hub, runs, tmp_path, command):
    environment = hub.environment(hub.token, tmp_path / "cache")
    told = ["merge", runs[0], tmp_path / "merged", "--push", "me/merged", "--base_model", "me/base"]
    finished = command(*told, "--certify", "off", **environment)
    assert finished.returncode == 0, finished.stderr
    assert "certificate: 4 of 4 checks passed in a fresh process" in finished.stdout
    held = hub.files("me/merged")
    assert {"model.safetensors", "merge.json", "README.md"} <= set(held) and "adapter_config.json" not in held
    assert str(runs[0]).encode() not in b"".join(held.values())
    card = held["README.md"].decode()
    assert "base_model_relation: merge" in card and "KL from the unmerged adapter" in card


def test_branches_and_pull_requests(hub, act, runs):
    outcome = push(act, runs[0], "me/branched", revision="wide")["result"]
    assert hub.refs("me/branched")["refs/heads/wide"] == outcome["commit"]
    assert "adapter_model.safetensors" not in hub.files("me/branched")
    asked = push(act, runs[0], "me/branched", create_pr=True)["result"]
    assert asked["pull_request"].endswith("/discussions/1")
    again = push(act, runs[0], "me/branched", create_pr=True)["result"]
    assert again["already_there"] and len(hub.pull_requests("me/branched")) == 1
    assert "adapter_model.safetensors" not in hub.files("me/branched")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("me/a/b", {}, "is no name on the Hub"),
        ("me/../../etc", {}, "is no name on the Hub"),
        ("alone", {}, "user/name is wanted"),
        ("you/theirs", {}, "'you' is neither you nor one of your groups"),
        ("me/x", {"base_model": None}, "--base_model user/name says which one"),
        ("me/x", {"base_model": "me/missing"}, "no such repository"),
        ("me/x", {"base_model": "me/other"}, "is not the base that was trained on: config"),
    ],
)  # fmt: skip
def test_what_cannot_be_pushed_is_one_line(hub, act, runs, name, options, message):
    if not hub.exists("me/other"):
        files = {path.name: path.read_bytes() for path in MODEL_DIR.iterdir() if path.is_file()}
        config = json.loads(files["config.json"])
        files["config.json"] = json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] + 1}).encode()
        hub.add_repo("me/other", files)
    answer = push(act, runs[0], name, **options)
    assert answer["exit_code"] == 2 and message in answer["error"] and "\n" not in answer["error"]
    assert not hub.exists("me/x")


def test_a_base_that_has_moved_on(hub, act, runs, tmp_path):
    """The published adapter names the commit that it was compared with, so a base that moves on changes nothing."""
    files = {path.name: path.read_bytes() for path in MODEL_DIR.iterdir() if path.is_file()}
    first = hub.add_repo("me/moving", files)
    assert "result" in push(act, runs[0], "me/on-moving", base_model="me/moving")
    weights = bytearray(files["model.safetensors"])
    for at in range(len(weights) // 2, len(weights)):
        weights[at] ^= 1
    hub.commit("me/moving", {"model.safetensors": bytes(weights)})
    folder = tmp_path / "pulled"
    assert "result" in act("pull", name="me/on-moving", folder=folder)
    assert json.loads((folder / "adapter_config.json").read_text())["revision"] == first
    again = push(act, runs[0], "me/on-moved", base_model="me/moving")
    assert again["exit_code"] == 2 and "other weights in" in again["error"]
    assert "result" in push(act, runs[0], "me/on-moved", base_model=f"me/moving@{first}")


def test_tokens(hub, runs, command, tmp_path):
    reader = hub.add_user("me", role="read")
    for token, message in (
        (None, "no token for the Hub"),
        (reader, "may only read"),
        ("hf_" + "x" * 30, "no valid token"),
    ):
        finished = command(
            "push", runs[0], "me/x", "--base_model", "me/base", **hub.environment(token, tmp_path / "cache")
        )  # fmt: skip
        assert finished.returncode == 2 and message in finished.stderr, finished.stderr
        assert finished.stderr.count("\n") == 1 and "hf_x" not in finished.stderr


FAULTS = {
    "500-once": {"how": "500", "times": 1},
    "500-for-ever": {"how": "500", "times": None},
    "429-once": {"how": "429", "times": 1, "retry_after": 1},
    "reset-once": {"how": "reset", "times": 1},
    "lost-answer": {"how": "lost_answer", "times": 1},
}


@pytest.fixture
def small(hub, runs, tmp_path):
    """Return a run on a base of the Hub with no more files than it must have, and the names that go up."""
    folder, base = tmp_path / "run", hub.refs("me/base")["refs/heads/main"]
    folder.mkdir()
    for name in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "result.json",
        "base_fingerprint.json",
        "recipe.yaml",
    ):
        shutil.copy(runs[0] / name, folder)
    told = json.loads((folder / "base_fingerprint.json").read_text())
    (folder / "base_fingerprint.json").write_text(json.dumps(told | {"name": "me/base", "revision": base}))
    record = read_result(folder) | {"base_model": "me/base"}
    record.pop("push", None)
    (folder / "result.json").write_text(json.dumps(record))
    return folder, {path.name for path in folder.iterdir()} | {"README.md"}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_at_every_request(hub, act, small, fault):
    """The push succeeds, or says how to go on and then does; the folder is whole either way."""
    folder, names = small
    untold = (folder / "result.json").read_bytes()
    received = len(hub.requests)
    assert "result" in push(act, folder, f"me/clean-{fault}", base_model=None)
    requests = len(hub.requests) - received
    assert requests >= 15
    before, failures = contents(folder), {}
    for number in range(requests):
        (folder / "result.json").write_bytes(untold)
        name = f"me/{fault}-{number}"
        hub.fail(after=number, method=".*", path=".*", **FAULTS[fault])
        answer = push(act, folder, name, base_model=None)
        hub.recover()
        assert contents(folder) == before
        if "error" in answer:
            failures[number] = answer
            told = read_result(folder)["push"]
            if answer["exit_code"] == 5:
                assert told["command"] == f"hf-peft-recipes push {folder} {name}" and told["command"] in answer["error"]
            else:
                assert answer["exit_code"] == 6 and "comes back" in answer["error"]
            assert "result" in push(act, folder, name, base_model=None)
        assert set(hub.files(name)) - {".gitattributes"} == names, number
        assert len(hub.commits(name)) == 2, "a commit that landed is not made again"
    assert len(failures) == (requests if fault == "500-for-ever" else 0), failures


def test_a_slow_hub(hub, act, small):
    hub.fail(method=".*", path=".*", how="slow", times=None, seconds=0.1)
    assert "result" in push(act, small[0], "me/slow", base_model=None)


def test_a_flipped_byte_on_the_server_is_seen(hub, act, runs, tmp_path):
    assert "result" in push(act, runs[0], "me/flipped")
    hub.flip_byte("me/flipped", "adapter_model.safetensors")
    answer = act("pull", name="me/flipped", folder=tmp_path / "pulled")
    assert answer["exit_code"] == 5 and "other bytes than the Hub says" in answer["error"]
    assert not (tmp_path / "pulled").exists() and not list(tmp_path.glob(".pulled*"))


def test_what_cannot_be_pulled_is_one_line(hub, act, tmp_path):
    hub.add_repo("me/empty", {"README.md": b"nothing"})
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"12345678"}
    hub.add_repo("me/outside", {**files, "tokenizer_config.json": b'{"vocab_file": "../../../etc/passwd"}'})
    hub.add_repo("me/names", {**files, "../evil.json": b"{}", "sub/adapter_config.json": b"{}"})
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    for name, folder, message in (
        ("me/missing", "new", "no such repository"),
        ("me/empty", "new", "holds neither an adapter nor a model"),
        ("me/empty@v9", "new", "no such revision"),
        ("me/outside", "new", "outside of its folder"),
        ("me/empty", "used", "is not empty"),
    ):
        answer = act("pull", name=name, folder=tmp_path / folder)
        assert answer["exit_code"] == 2 and message in answer["error"] and "\n" not in answer["error"], answer
        assert not (tmp_path / "new").exists()
    assert "result" in act("pull", name="me/names", folder=tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(files)


def test_a_full_disk_leaves_nothing(hub, runs, act, tmp_path, command):
    assert "result" in push(act, runs[0], "me/large")
    (tmp_path / "small").mkdir()
    script = f"mount -t tmpfs -o size=300k none {tmp_path}/small && {sys.executable} -m hf_peft_recipes pull me/large {tmp_path}/small/run; echo code $?; ls -A {tmp_path}/small"
    finished = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], env=hub.environment(hub.token, tmp_path / "cache"), cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.stdout.split() == ["code", "2"], finished.stdout + finished.stderr
    assert "has room for" in finished.stderr


def test_recipes_on_the_hub(hub, act, command, tmp_path, jsonl):
    own = tmp_path / "gentle.yaml"
    own.write_text("# mine\nextends: lora\nsummary: In small steps.\ntraining:\n  learning_rate: 3.0e-4  # slow\n")
    environment = hub.environment(hub.token, tmp_path / "cache")
    finished = command("publish-recipe", own, "me/gentle", **environment)
    assert finished.returncode == 0, finished.stderr
    assert hub.files("me/gentle")["recipe.yaml"] == own.read_bytes()
    first = hub.refs("me/gentle")["refs/heads/main"]
    hub.commit("me/gentle", {"recipe.yaml": own.read_bytes().replace(b"3.0e-4", b"9.0e-4")})
    hub.commit("me/gentle", {"recipe.yaml": b"extends: lora\nmodel:\n  trust_remote_code: true\n"}, revision="main")
    shown = command("show", f"hub:me/gentle@{first}", "--json", **environment)
    rate = json.loads(shown.stdout)["training"]["learning_rate"]
    assert (rate["value"], rate["reason"], rate["origin"]) == (3e-4, "slow", f"hub:me/gentle@{first}")
    refused = command("show", "hub:me/gentle", **environment)
    assert refused.returncode == 2 and "trust_remote_code is a decision" in refused.stderr
    missing = command("show", "hub:me/none", **environment)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    listed = command("list", "--hub", "--author", "me", "--json", **environment)
    found = {row["repo_id"]: row["base_model"] for row in json.loads(listed.stdout)}
    assert found["me/gentle"] is None and "me/base" not in found
    assert "me/gentle" in command("list", "--hub", "gentle", **environment).stdout
    refused = command("list", "--author", "me")
    assert refused.returncode == 2 and "does nothing without --hub" in refused.stderr

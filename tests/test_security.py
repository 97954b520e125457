"""What others supply decides nothing: code of a base, pickles, recipes of the Hub, and the modes of what is written."""

import base64
import json
import os
import pickle
import re
import shutil
import stat
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import FAST

from hf_peft_recipes import UserError, adapters, certificate, get_recipe, lineage, models, pickles, registry
from hf_peft_recipes.api.rounds import _open_source
from hf_peft_recipes.checkpoints.manifest import Batch, seal
from hf_peft_recipes.cli import app, using
from hf_peft_recipes.data.cache import cache_folder
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.endpoint.answers import Answers
from hf_peft_recipes.errors import RewardError
from hf_peft_recipes.feedback.asking import Feedback
from hf_peft_recipes.feedback.journal import Journal
from hf_peft_recipes.feedback.people.leases import Leases, alone
from hf_peft_recipes.feedback.people.tokens import kept_token
from hf_peft_recipes.feedback.record import Origin, as_turns
from hf_peft_recipes.feedback.samples import Sample, write_samples
from hf_peft_recipes.hub.pulling import _check_names
from hf_peft_recipes.merging import request
from hf_peft_recipes.results import write_text
from hf_peft_recipes.rounds.settings import read_rounds
from hf_peft_recipes.scorers.rewards import read_rewards
from hf_peft_recipes.spec import recipe_file
from hf_peft_recipes.spec.serialize import decision_words
from hf_peft_recipes.sweep.study import Study

ROWS = [{"question": f"What is {n} plus one?", "answer": f"It is {n + 1}."} for n in range(40)]


class Evil:
    """What a pickle runs when it is read: here, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it-was-run"


@pytest.fixture
def base(tmp_path):
    return shutil.copytree(MODEL_DIR, tmp_path / "base")


def with_code(folder: Path, mark: Path) -> Path:
    """Let a base ask for code of its own."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\n", "utf-8")
    return folder


def test_code_of_a_base_is_neither_run_nor_asked_about(base, mark, monkeypatch):
    from transformers import AutoModelForCausalLM

    with_code(base, mark)
    # transformers asks at the terminal where nothing is said, and takes this for leave.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    section = {"name_or_path": str(base)}
    models.load_tokenizer(section)
    for load in (
        lambda: models.load_configs(section),
        lambda: models.load_base(AutoModelForCausalLM, section, None),
    ):
        with pytest.raises(UserError, match="--trust_remote_code true runs that code") as refused:
            load()
        assert "\n" not in str(refused.value)
    assert not mark.exists()


def test_a_statement_cannot_let_code_run(base, mark, monkeypatch):
    with_code(base, mark)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    statement = {"load": {"trust_remote_code": True}, "model_class": "AutoModelForCausalLM", "trained": {}}
    (base / "certificate.json").write_text(json.dumps(statement | {"prompts": [], "autocast": False}), "utf-8")
    verdict = certificate.certify(base)
    assert verdict["status"] == "failed" and not mark.exists()
    # Nor choose what loads it.
    (base / "certificate.json").write_text(json.dumps(statement | {"model_class": "pipeline"}), "utf-8")
    assert "KeyError" in certificate.certify(base)["checks"][0]["detail"]


def test_a_base_that_is_a_pickle_is_refused_with_a_word_of_why(base, tmp_path):
    from transformers import AutoModelForCausalLM

    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")
    section = {"name_or_path": str(base)}
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, and a pickle runs code .* converts it$"):
        models.check_base(section)
    with pytest.raises(UserError, match=r"pickles \(\*\.bin\): a pickle runs code .* converts it$"):
        models.load_base(AutoModelForCausalLM, section, None)
    for name in ("model.pt", "model.pth", "model.ckpt", "model.pkl"):
        with pytest.raises(UserError, match=r"is a file; .* a pickle runs code"):
            models.check_base({"name_or_path": str(shutil.copy(base / "pytorch_model.bin", tmp_path / name))})


def test_an_adapter_that_is_a_pickle_is_refused_with_a_word_of_why(base, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}', "utf-8")
    torch.save({"one": torch.ones(2)}, folder / "adapter_model.bin")
    (folder / "certificate.json").write_text("{}", "utf-8")
    for load in (
        lambda: adapters.load_adapter(None, folder),
        lambda: lineage.read_config(folder),
        lambda: request._adapter_config(folder),
    ):
        with pytest.raises(UserError, match=r"a pickle runs code .* converts it$"):
            load()
    assert "a pickle runs code" in certificate.certify(folder)["checks"][0]["detail"]
    # What the message says does it.
    save_file(torch.load(folder / "adapter_model.bin", weights_only=True), folder / "adapter_model.safetensors")
    assert load_file(folder / "adapter_model.safetensors")["one"].tolist() == [1.0, 1.0]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was ended after its checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    settings = {**FAST, "evaluation.max_rows": 0, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    recipe = get_recipe("lora", dataset=ROWS, max_length=64, gradient_accumulation_steps=1, **settings)
    before = os.umask(0o077)
    try:
        recipe.train(folder, progress=False)
    finally:
        os.umask(before)
    record = json.loads((folder / "result.json").read_text("utf-8"))
    (folder / "result.json").write_text(json.dumps(record | {"status": "running"}), "utf-8")
    shutil.rmtree(folder / "checkpoint-2")
    return recipe, folder


def resealed(folder: Path) -> None:
    """List the files as they are now: a manifest proves no author."""
    (folder / "manifest.json").unlink()
    seal(folder, 1, 2, True, Batch(1, 8, 1))


@pytest.mark.parametrize("name", ("optimizer.pt", "scheduler.pt", "rng_state.pth"))
def test_a_checkpoint_cannot_let_code_run(interrupted, name, tmp_path, mark):
    recipe, folder = interrupted[0], shutil.copytree(interrupted[1], tmp_path / "out")
    torch.save({"state": Evil(mark)}, folder / "checkpoint-1" / name)
    (folder / "checkpoint-1" / "training_args.bin").write_bytes(pickle.dumps(Evil(mark)))
    resealed(folder / "checkpoint-1")
    with pytest.raises(UserError, match=rf"{name} would run posix.mkdir when it is read") as refused:
        recipe.train(folder, resume=True, progress=False)
    assert not mark.exists() and "\n" not in str(refused.value)
    pickle.loads((zipfile.ZipFile(folder / "checkpoint-1" / name)).read(f"{Path(name).stem}/data.pkl"))
    assert mark.exists()


def test_weights_of_a_checkpoint_are_no_pickle(interrupted, tmp_path, mark):
    recipe, folder = interrupted[0], shutil.copytree(interrupted[1], tmp_path / "out")
    checkpoint = folder / "checkpoint-1"
    (checkpoint / "adapter_model.safetensors").unlink()
    torch.save({"one": Evil(mark)}, checkpoint / "adapter_model.bin")
    resealed(checkpoint)
    with pytest.raises(UserError, match=r"adapter_model.bin: a pickle runs code"):
        recipe.train(folder, resume=True, progress=False)
    assert not mark.exists()


def test_no_checkpoint_holds_the_arguments(interrupted):
    # A pickle, which no test of resuming reads either, see above.
    assert not list(interrupted[1].rglob("training_args.bin"))


def sharded(folder: Path, further: object) -> Path:
    """Write what several processes write, by torch's own means, in this one."""
    import torch.distributed.checkpoint as dcp

    state = {"weight": torch.ones(4, dtype=torch.bfloat16), "steps": 3, "further": further}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder / "optimizer_0"), no_dist=True)
    return folder


def read_back(folder: Path) -> dict:
    import torch.distributed.checkpoint as dcp

    state = {"weight": torch.zeros(4, dtype=torch.bfloat16), "steps": 0, "further": None}
    with pickles.values_alone(folder):
        dcp.load(state, storage_reader=dcp.FileSystemReader(folder / "optimizer_0"), no_dist=True)
    return state


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_checkpoint_cannot_let_code_run(tmp_path, mark):
    whole = read_back(sharded(tmp_path / "whole", 0.1))
    assert whole["steps"] == 3 and whole["weight"].sum() == 4 and whole["further"] == 0.1
    # torch reads what is no tensor there by weights_only=False.
    with pytest.raises(UserError, match=r"chunk would run posix.mkdir when"):
        read_back(sharded(tmp_path / "chunk", Evil(mark)))
    index = sharded(tmp_path / "index", 1) / "optimizer_0" / ".metadata"
    index.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match=r"\.metadata would run posix.mkdir when it is read"):
        read_back(tmp_path / "index")
    index.write_bytes(b"\x80\x04nonsense")
    with pytest.raises(UserError, match="cannot be looked into"):
        read_back(tmp_path / "index")
    assert not mark.exists()


def test_what_an_engine_keeps_is_let_through_by_name(tmp_path, monkeypatch):
    engine = ModuleType("deepspeed.runtime.fp16.loss_scaler")
    exec("class LossScaler: pass\nclass DynamicLossScaler: pass\nclass Other: pass", vars(engine))
    parents = ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.fp16")
    for module in (*map(ModuleType, parents), engine):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    before = torch.serialization.get_safe_globals()
    for kind in (engine.LossScaler, engine.Other):
        kind.__module__ = engine.__name__
        torch.save({"scaler": kind()}, tmp_path / f"{kind.__name__}.pt")

    def read(name: str) -> object:
        with pickles.values_alone(tmp_path):
            return torch.load(tmp_path / name, weights_only=False)["scaler"]

    assert isinstance(read("LossScaler.pt"), engine.LossScaler)
    with pytest.raises(UserError, match=r"Other.pt would run deepspeed.runtime.fp16.loss_scaler.Other"):
        read("Other.pt")
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_looking_into_a_pickle_runs_nothing(tmp_path, mark):
    path = tmp_path / "any.pkl"
    path.write_bytes(pickle.dumps([Evil(mark), {1: (Evil(mark),)}]) + pickle.dumps(print))
    assert pickles.names_in(path) == {"posix.mkdir", "builtins.print"}
    assert not mark.exists()


@pytest.fixture
def on_the_hub(monkeypatch):
    """Return a function that gives the Hub a recipe, and its name."""

    def give(text: str) -> str:
        source = registry.Source("theirs", "hub:them/theirs@0123", lambda: text)
        find = registry.find
        monkeypatch.setattr(registry, "find", lambda name: source if name == "hub:them/theirs" else find(name))
        return "hub:them/theirs"

    return give


DECIDED = ("model.trust_remote_code", "model.use_kernels", "model.allow_all_kernels", "allow_code_execution")
WHO_RUNS = "is a decision of who runs"


@pytest.mark.parametrize("path", (*DECIDED, "model.kernel_config"))
def test_no_way_through_a_recipe_lets_code_run(on_the_hub, path):
    section, _, key = path.rpartition(".")
    for text in (
        f"{section}: {{{key}: true}}" if section else f"{key}: true",
        f"{section}: {{{key}: {{deeper: true}}}}" if section else f"{key}: {{deeper: true}}",
        f"rules: [{{when: {{}}, set: {{{path}: true}}, why: w}}]",
        f"rules: [{{when: {{device.kind: [cpu, cuda]}}, set: {{{path}: true}}, why: w}}]",
        f"rules: [{{when: {{device.kind: tpu}}, set: {{{path}.deeper: true}}, why: w}}]",
        f"chosen_for_device: {{{path}: {{otherwise: true, why: w}}}}",
    ):
        name = on_the_hub(f"extends: lora\n{text}\n")
        with pytest.raises(UserError, match=f"{key} {WHO_RUNS}"):
            get_recipe(name)
    if path != "model.kernel_config":
        given = get_recipe("lora", **{path: True}).resolved
        assert given.value(path) is True and key not in recipe_file(given)
        assert decision_words(given) == [f"--{path}", "true"]


def test_a_recipe_of_the_hub_names_no_code_and_no_file_of_this_machine(on_the_hub, tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text("extends: lora\n", "utf-8")
    for local in (str(tmp_path / "own.yaml"), "own.yaml", "../own.yaml"):
        with pytest.raises(UserError, match="a recipe of the Hub cannot name one"):
            get_recipe(on_the_hub(f"extends: ['{local}']\n"))
    # What a rule sets is the recipe's as well.
    for text in (
        "rewards: {functions: ['os:getcwd']}",
        "rules: [{when: {}, set: {rewards.functions: ['os:getcwd']}, why: w}]",
    ):
        recipe = get_recipe(on_the_hub(f"extends: [grpo]\n{text}\n")).resolved
        with pytest.raises(UserError, match="name code of this machine"):
            read_rewards(recipe)
    server = "{feedback.source: exact, feedback.engine: server, feedback.engine_options.base_url: 'http://them', feedback.engine_options.model: m}"
    for change, told in (
        (server, "says who answers: who runs the recipe does"),
        (
            "{feedback.source: judge, feedback.options.base_url: 'http://them', feedback.options.model: m}",
            "who runs it does",
        ),
        ("{feedback.source: 'os:getcwd'}", "who runs it does"),
    ):
        recipe = get_recipe(on_the_hub(f"extends: [rft]\nrules: [{{when: {{}}, set: {change}, why: w}}]\n")).resolved
        with pytest.raises(UserError, match=told):
            _open_source(recipe, read_rounds(recipe), tmp_path, {})


@pytest.fixture
def umask():
    """Return what sets the umask for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("mask", "file", "words"), ((0o000, 0o664, 0o660), (0o022, 0o644, 0o640), (0o077, 0o600, 0o600))
)
def test_files_are_as_open_as_the_umask_says_and_never_to_be_changed_by_all(
    tmp_path, umask, mask, file, words, monkeypatch
):
    umask(mask)
    write_text(tmp_path / "result.json", "{}")
    record = Sample(id="s", row_id="r", prompt=as_turns("p"), completion="c").record(Feedback(score=1.0), Origin("me"))
    Journal(tmp_path / "feedback.jsonl").append([record])
    Leases(tmp_path / ".leases").keep("ada", "s")
    Answers(tmp_path / "judge.jsonl").put("key", ["text"])
    with alone(tmp_path / "feedback.jsonl", "ada"):
        found = modes(tmp_path)
    said = dict.fromkeys((".feedback.jsonl.ada.lock", ".leases", "feedback.jsonl", "judge.jsonl"), words)
    assert found == {**said, "result.json": file}
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    kept_token("t")
    assert modes(tmp_path / "home" / "hf_peft_recipes") == {"feedback": 0o700, "feedback/t": 0o600}


def test_a_command_writes_nothing_that_all_can_change(umask, monkeypatch):
    found = []
    monkeypatch.setattr(app, "app", lambda: found.append(os.umask(0o022)))
    for mask in (0o000, 0o022, 0o077):
        umask(mask)
        app.main()
    assert found == [0o002, 0o022, 0o077]


def test_a_private_run_is_private(interrupted):
    found = modes(interrupted[1])
    assert {mode for name, mode in found.items() if (interrupted[1] / name).is_file()} == {0o600}
    assert {mode for name, mode in found.items() if (interrupted[1] / name).is_dir()} == {0o700}
    assert "checkpoint-1/adapter_model.safetensors" in found and "adapter_model.safetensors" in found


SECRETS = {
    "HF_TOKEN": "hf_" + "QwErTyUiOpAsDfGh" * 2,
    "WANDB_API_KEY": "wandb-0123456789abcdef",
    "OPENAI_API_KEY": "judge-0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "aws-0123456789abcdef",
    "PGPASSWORD": "postgres-0123456789",
    "GITHUB_PAT": "github_pat_0123456789",
}


def forms(secret: str) -> list[bytes]:
    """Return how a secret may stand in a file: as it is, in base64 at any place, in hexadecimal, in UTF-16."""
    raw = secret.encode()
    moved = [base64.b64encode(b" " * place + raw)[4 if place else 0 : -4] for place in range(3)]
    return [raw, *moved, raw.hex().encode(), secret.encode("utf-16-le")]


def holding(folder: Path) -> list[str]:
    """Return the files below a folder that hold a secret, in plain or packed."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        found += [
            f"{path}: {name}"
            for name, secret in SECRETS.items()
            for form in forms(secret)
            if any(form in each for each in contents)
        ]
    return found


def test_secrets_would_be_found(tmp_path):
    secret = SECRETS["WANDB_API_KEY"]
    (tmp_path / "plain").write_text(f"key={secret}")
    for place in range(3):
        (tmp_path / f"packed-{place}").write_bytes(base64.b64encode(b"x" * place + secret.encode() + b"yz"))
    torch.save({"token": secret}, tmp_path / "saved.pt")
    (tmp_path / "none").write_text("nothing")
    assert {Path(line.split(":")[0]).name for line in holding(tmp_path)} == {
        "plain",
        "packed-0",
        "packed-1",
        "packed-2",
        "saved.pt",
    }


def test_no_secret_is_in_anything_written(tmp_path, monkeypatch, capfd):
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    said = f"the judge repeats {SECRETS['OPENAI_API_KEY']} and {SECRETS['AWS_SECRET_ACCESS_KEY']}"
    settings = {**FAST, "save_strategy": "steps", "save_steps": 1, "max_steps": 1, "max_length": 64}
    recipe = get_recipe("lora", dataset=ROWS, gradient_accumulation_steps=1, run_name="demo", **settings)
    recipe.train(tmp_path / "out", progress=False)
    # A key that is mistyped into a value is refused before it is written.
    with pytest.raises(UserError, match="holds a secret"):
        get_recipe("lora", run_name=SECRETS["WANDB_API_KEY"])

    def fails(**_):
        raise RuntimeError(said)

    grpo = get_recipe("grpo", dataset=ROWS, rewards=[fails], **{**FAST, "max_steps": 1, "max_completion_length": 4})
    with pytest.raises(RewardError):
        grpo.train(tmp_path / "failed", progress=False)
    assert "REDACTED" in (tmp_path / "failed" / "result.json").read_text("utf-8")
    sample = Sample(id="s", row_id="r", prompt=as_turns("p"), completion=said)
    Journal(tmp_path / "feedback.jsonl").append([sample.record(Feedback(score=1.0, text=said), Origin("me"))])
    write_samples(tmp_path / "samples.jsonl", [sample])
    Answers(tmp_path / "judge.jsonl").put("key", [said])
    study = Study(tmp_path, SimpleNamespace(minimizes=True, seed=0, dimensions=()))
    study.fail(study.ask(), f"its last words: {said}")
    assert len(list(tmp_path.rglob("*"))) > 20 and holding(tmp_path) == []
    told = "".join(capfd.readouterr())
    assert not [name for name, secret in SECRETS.items() if secret in told]
    assert holding(cache_folder().parent) == []


def test_what_others_wrote_moves_no_terminal(monkeypatch, capsys):
    said = "right\x1b[2J\x1b]52;c;ZXZpbA==\x07 \u202eleft"
    with pytest.raises(SystemExit):
        app._fail(f"row 3 holds {said}", 2)
    told = capsys.readouterr().err
    assert told == "error: row 3 holds right\\x1b[2J\\x1b]52;c;ZXZpbA==\\x07 \\u202eleft\n"
    assert using._as_shown(said) == said
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    assert using._as_shown(said) == told.removeprefix("error: row 3 holds ").strip()


@pytest.mark.parametrize(
    "text", ('{"vocab_file": "../secret"}', '{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": {"a": "..\\\\x"}}')
)
def test_what_is_pulled_names_no_file_outside(tmp_path, text):
    name = "model.safetensors.index.json" if "weight_map" in text else "tokenizer_config.json"
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(UserError, match="outside of its folder; nothing was kept"):
        _check_names(tmp_path)


def test_each_promise_names_a_test_that_there_is():
    folder = Path(__file__).parent
    promised = set(re.findall(r"`(test_\w+)`", (folder.parent / "SECURITY.md").read_text("utf-8")))
    there = {
        name
        for path in folder.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M)
    }
    assert len(promised) > 20 and not promised - there

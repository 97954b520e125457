"""A fresh process holds what was written to what the live model said: every kind of damage is seen, and named."""

import json
import shutil

import pytest
import torch
from conftest import FAST
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from hf_peft_recipes import UserError, certificate, certify, get_recipe
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.fingerprint import FINGERPRINT_FILE, differences, fingerprint, local_reader

KINDS = ("lora", "full", "qlora", "lora_fp8", "head", "tokens")


def trained(kind, rows, folder):
    """Train a few steps of one kind of run: by method, with a head saved whole, with new tokens and their embeddings."""
    method = "lora" if kind in ("head", "tokens") else kind
    overrides = {"head": {"modules_to_save": ["lm_head"]}}.get(kind, {})
    if kind == "tokens":
        tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        tokenizer.add_tokens(["<|think|>", "<|rest|>"])
        rows = [{**row, "answer": f"<|think|>{row['answer']}<|rest|>"} for row in rows]
        overrides = {"tokenizer": tokenizer}
    settings = {**FAST, "evaluation.max_rows": 0, "max_length": 128, "gradient_accumulation_steps": 1}
    recipe = get_recipe(method, dataset=rows, max_steps=4, learning_rate=5e-3, warmup_steps=0, **overrides, **settings)
    recipe.train(folder, progress=False)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    rows = [{"question": f"What is {n} plus one?", "answer": f"It is {n + 1}."} for n in range(40)]
    return request.param, trained(request.param, rows, tmp_path_factory.mktemp(request.param) / "out")


DAMAGED = pytest.mark.parametrize("run", ("lora", "full"), indirect=True)
"""One adapter and one model are enough to damage."""
ONE = pytest.mark.parametrize("run", ("lora",), indirect=True)


@pytest.fixture
def copy(run, tmp_path):
    kind, folder = run
    return kind, shutil.copytree(folder, tmp_path / "copy")


def failed(folder):
    verdict = certificate.certify(folder)
    assert verdict["status"] == ("failed" if any(not check["ok"] for check in verdict["checks"]) else "passed")
    return {check["name"]: check["detail"] for check in verdict["checks"] if not check["ok"]}


def weights(folder):
    name = "adapter_model.safetensors" if (folder / "adapter_config.json").is_file() else "model.safetensors"
    return folder / name


def test_what_was_saved_passes(run):
    kind, folder = run
    verdict = certificate.certify(folder)
    assert verdict["status"] == "passed", verdict
    assert verdict["figures"]["log_probability_difference"] < 1e-5
    adapter_only = {"base", "keys", "the adapter acts"}
    always = {"trained tensors", "tokenizer and template", "logits", "greedy text"}
    assert {check["name"] for check in verdict["checks"]} == (always if kind == "full" else always | adapter_only)
    if kind != "full":
        assert verdict["figures"]["adapter_effect"] > 0.01
    statement = certificate.read_statement(folder)
    assert any("lm_head" in name for name in statement["trained"]) is (kind == "head")
    assert any("trainable_tokens" in name for name in statement["trained"]) is (kind == "tokens")


@DAMAGED
def test_a_flipped_byte_is_seen(copy):
    _, folder = copy
    path = weights(folder)
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    assert "1 of other values" in failed(folder)["trained tensors"]


@DAMAGED
def test_a_lost_tensor_is_seen(copy):
    kind, folder = copy
    tensors = load_file(weights(folder))
    del tensors[sorted(tensors)[-1]]
    save_file(tensors, weights(folder), {"format": "pt"})
    found = failed(folder)
    assert "of other values" in found["trained tensors"]
    if kind != "full":
        assert found["keys"].startswith("1 missing")


@DAMAGED
def test_an_adapter_that_loads_as_nothing_is_seen(copy):
    kind, folder = copy
    if kind == "full":
        tensors = {name: torch.zeros_like(tensor) for name, tensor in load_file(weights(folder)).items()}
    else:
        tensors = {name.replace("model.layers", "model.blocks"): t for name, t in load_file(weights(folder)).items()}
    save_file(tensors, weights(folder), {"format": "pt"})
    found = failed(folder)
    assert "trained tensors" in found
    assert ("the adapter acts" in found) is (kind == "lora")


@DAMAGED
def test_another_template_is_seen(copy):
    _, folder = copy
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|assistant|>", "<|assistant|> "))
    assert failed(folder) == {"tokenizer and template": "4 of 4 prompts give other tokens"}


@ONE
def test_another_base_is_seen_and_refused(copy, tmp_path):
    _, folder = copy
    base = shutil.copytree(MODEL_DIR, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    found = failed(folder)
    assert found["base"].startswith("other weights in ")
    recipe = folder / "recipe.yaml"
    text = recipe.read_text()
    named = f"  name_or_path: {base}\n"
    recipe.write_text(text.replace("model:\n", f"model:\n{named}") if "model:\n" in text else f"{text}model:\n{named}")
    from hf_peft_recipes import RunResult

    with pytest.raises(UserError, match="was trained on another base"):
        RunResult.read(folder).load()


def test_fewer_layers_are_told_in_words(tmp_path):
    """What PEFT takes without a word (peft#2566)."""
    other = shutil.copytree(MODEL_DIR, tmp_path / "base")
    config = json.loads((other / "config.json").read_text())
    tensors = load_file(other / "model.safetensors")
    last = config["num_hidden_layers"] - 1
    kept = {name: tensor for name, tensor in tensors.items() if f".layers.{last}." not in name}
    save_file(kept, other / "model.safetensors", {"format": "pt"})
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": last, "transformers_version": "9"}))
    base, found = (fingerprint(local_reader(folder), "base") for folder in (MODEL_DIR, other))
    told = differences(base, found)
    assert told[0] == f"config num_hidden_layers: {last} instead of {last + 1}"
    assert any("tensors model.layers.*.mlp.down_proj.weight: 3 of" in line for line in told)
    assert differences(base, base) == []


@ONE
def test_a_fresh_process_gives_the_verdict(run, command):
    _, folder = run
    (folder / "adapter_config.json").rename(folder / "away.json")
    try:
        finished = command("certify", folder)
        assert finished.returncode == 6, finished.stderr
        assert "FAILED  loads: " in finished.stdout
    finally:
        (folder / "away.json").rename(folder / "adapter_config.json")
    assert certify(folder)["status"] == "passed"


@ONE
def test_what_cannot_be_certified_is_refused(tmp_path, run):
    with pytest.raises(UserError, match="has no certificate"):
        certify(tmp_path)
    assert (run[1] / FINGERPRINT_FILE).is_file()

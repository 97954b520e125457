"""Merged models against the live adapters they were made of, as plain transformers loads them in a fresh process."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys

import pytest
import torch
from conftest import FAST
from zygote.client import MARK

from hf_peft_recipes import RecipeError, RunResult, UserError, get_recipe
from hf_peft_recipes.embedded import MODEL_DIR

PROMPT = "Review: The soup was cold.\nIs this review positive or negative?"
RELOAD = (
    MARK
    + """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
prompt, target, *folders = sys.argv[1:]
seen = []
for folder in folders:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits = model(**inputs).logits.float()
        produced = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs.input_ids.shape[1]:]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    seen.append({"logits": logits, "text": tokenizer.decode(produced), "kind": type(model).__name__,
        "dtype": model.dtype, "tied": tied, "quantized": hasattr(model.config, "quantization_config")})
torch.save(seen, target)
"""
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads only wait for each other on a model of this size: one takes a third of the time."""
    threads, words = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)
    if words is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = words


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function from recipe and overrides to the folder of a short run; each is trained once."""
    folders = {}

    def train(recipe, **overrides):
        key = (recipe, *sorted(overrides.items(), key=str))
        if str(key) not in folders:
            folder = tmp_path_factory.mktemp(recipe) / "out"
            given = {"max_steps": 8, "learning_rate": 1e-3, "max_length": 128, **FAST, **overrides}
            get_recipe(recipe, **given).train(folder, progress=False)
            folders[str(key)] = folder
        return folders[str(key)]

    return train


@pytest.fixture(scope="module")
def with_head(run):
    """Return the folder of a run that trained LoRA and the head, which the base ties to its embedding."""
    return run("lora", modules_to_save=["lm_head"], **{"evaluation.max_rows": 4})


@pytest.fixture(scope="module")
def merged_qlora(run, tmp_path_factory):
    """Return the run and what all three ways to merge it scored."""
    folder = run("qlora")
    return folder, RunResult.read(folder).merge(tmp_path_factory.mktemp("merged") / "m", progress=False)


def reload(tmp_path, *folders):
    """Return what a fresh process that knows only transformers sees in each folder."""
    target = tmp_path / "seen.pt"
    finished = subprocess.run(
        [sys.executable, "-c", RELOAD, PROMPT, str(target), *map(str, folders)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return torch.load(target)


def live(folder):
    """Return logits of the run's unmerged adapter on its base, those of the base alone, and the greedy answer."""
    from hf_peft_recipes import trained

    loaded = RunResult.read(folder).load()
    ids = torch.tensor([loaded.renderer.serve([{"role": "user", "content": PROMPT}])])
    with torch.no_grad():
        logits = loaded.model(input_ids=ids, use_cache=False).logits.float()
        with loaded.model.disable_adapter():
            base = loaded.model(input_ids=ids, use_cache=False).logits.float()
    return logits, base, trained.answer(loaded, [{"role": "user", "content": PROMPT}], 12, lambda _: None)


def divergence(expected, found):
    wanted = expected.double().log_softmax(-1)
    return (wanted.exp() * (wanted - found.double().log_softmax(-1))).sum(-1)


def at_answer(expected, found):
    """Return the divergence at the position where the answer begins, which is where a run's rows carry loss."""
    return float(divergence(expected, found)[0, -1])


def edited(folder, target, old, new):
    """Return a copy of the run with another text in its recipe."""
    shutil.copytree(folder, target)
    text = (target / "recipe.yaml").read_text()
    assert old in text
    (target / "recipe.yaml").write_text(text.replace(old, new, 1))
    return target


def with_adapter(folder, target, rank=4, **config):
    """Return a copy of the run in `folder` with an untrained adapter of another kind, its tensors drawn at random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("adapter_*"))
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=rank, task_type="CAUSAL_LM", **config))
    for name, tensor in model.named_parameters():
        if tensor.requires_grad and "magnitude" not in name:
            tensor.data = tensor.data + 0.05 * torch.randn_like(tensor)
    model.save_pretrained(str(target))
    return target


def test_every_way_to_merge_is_scored_and_the_nearest_kept(merged_qlora, tmp_path):
    folder, merged = merged_qlora
    figures = {name: found["divergence"]["mean"] for name, found in merged.variants.items()}
    assert set(figures) == {"bf16", "dequantized", "requantized"}
    assert merged.into == min(figures, key=figures.get) == "dequantized"
    # The nearest by far; where products are in bfloat16, their rounding is all that is left of it.
    assert figures["dequantized"] < 1e-4 and figures["dequantized"] < 0.6 * min(figures["bf16"], figures["requantized"])
    # The same rows, model and arithmetic as at the end of the run.
    assert merged.record["unmerged"]["metrics"] == pytest.approx(RunResult.read(folder).metrics["after"], rel=1e-4)
    for found in merged.variants.values():
        assert set(found["metrics"]) == set(merged.record["unmerged"]["metrics"])
    assert json.loads((merged.folder / "merge.json").read_text()) == json.loads(json.dumps(merged.record))
    assert "dequantized (least divergence)" in str(merged)
    # The other two, asked for; a fresh process then loads all three.
    asked = [RunResult.read(folder).merge(tmp_path / into, into, progress=False) for into in ("bf16", "requantized")]
    made = {one.into: one for one in (merged, *asked)}
    logits, _, answer = live(folder)
    for (into, one), seen in zip(made.items(), reload(tmp_path, *(one.folder for one in made.values())), strict=True):
        assert seen["kind"] == "LlamaForCausalLM"
        assert seen["quantized"] is (into == "requantized")
        assert one.variants[into]["divergence"] == merged.variants[into]["divergence"]
        assert at_answer(logits, seen["logits"]) <= merged.variants[into]["divergence"]["largest"] + 1e-4
        if into == "dequantized":
            # It ends where the trained model ends, under plain `generate`.
            assert seen["text"] == f"{answer}<|end|>"
    assert [list(one.variants) for one in asked] == [["bf16"], ["requantized"]]
    assert made["requantized"].record["files"]["model.safetensors"] < merged.record["files"]["model.safetensors"] / 2


def test_a_merge_into_float32_changes_nothing_and_shards_make_one_model(with_head, tmp_path):
    dtype = get_recipe("lora").resolved.value("model.dtype")
    folder = edited(with_head, tmp_path / "out", f"dtype: {dtype}", "dtype: float32")
    merged = RunResult.read(folder).merge(tmp_path / "m", max_shard_size="500KB", progress=False)
    assert merged.variants["bf16"]["dtype"] == "float32"
    assert merged.variants["bf16"]["divergence"]["mean"] < 1e-7
    assert len(list(merged.folder.glob("model-*.safetensors"))) > 4
    assert (merged.folder / "model.safetensors.index.json").is_file()
    assert set(merged.record["files"]) == {path.name for path in merged.folder.iterdir()} - {"merge.json"}
    (seen,), (logits, _, answer) = reload(tmp_path, merged.folder), live(folder)
    assert seen["dtype"] == torch.float32
    torch.testing.assert_close(seen["logits"], logits, atol=1e-4, rtol=1e-4)
    assert seen["text"] == f"{answer}<|end|>"


KINDS = {
    "a trained head over a tied embedding, quantised": (
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        False,
    ),
    "a trained embedding under a tied head": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        False,
    ),
    "LoRA on a tied embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, False),
    "LoRA on a tied head": ({"target_modules": ["q_proj", "lm_head"]}, False),
    "some tokens of a tied embedding": ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 9, 70]}, True),
    "DoRA": ({"target_modules": "all-linear", "use_dora": True}, True),
}


@pytest.mark.filterwarnings("ignore")
def test_what_is_more_than_lora_comes_out_right(run, with_head, tmp_path):
    folders, targets = [], []
    for number, (config, _) in enumerate(KINDS.values()):
        folders.append(with_adapter(run("qlora") if number == 0 else with_head, tmp_path / f"out{number}", **config))
        targets.append(tmp_path / f"m{number}")
        RunResult.read(folders[-1]).merge(targets[-1], progress=False)
    for kind, folder, seen in zip(KINDS, folders, reload(tmp_path, *targets), strict=True):
        logits, base, _ = live(folder)
        assert seen["tied"] is KINDS[kind][1], kind
        # The adapter does something, and what it does is in the merged weights.
        moved, lost = float(divergence(logits, base).mean()), float(divergence(logits, seen["logits"]).mean())
        assert moved > 30 * lost, (kind, moved, lost)


def test_a_vocabulary_that_has_grown(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    tokenizer.add_tokens(["<mood>", "</mood>"])
    model.resize_token_embeddings(len(tokenizer))
    rows = [{"question": f"<mood>{n}</mood>", "answer": f"It is <mood> {n + 1}."} for n in range(40)]
    recipe = get_recipe("lora", model=model, tokenizer=tokenizer, dataset=rows, max_steps=4, **FAST)
    folder = tmp_path / "out"
    recipe.train(folder, progress=False)
    lines = []
    merged = _merge_saying(RunResult.read(folder), tmp_path / "m", lines)
    # The rows were a caller's objects.
    assert merged.record["compared_on"] == "fixed texts"
    assert merged.variants["bf16"]["metrics"] == {}
    assert any("no longer those of the run" in line for line in lines)
    (seen,) = reload(tmp_path, merged.folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).input_ids
    # PEFT put its layers into the caller's model, which so is the live one.
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, use_cache=False).logits.float()
    assert seen["logits"].shape[-1] == len(tokenizer)
    assert float(divergence(logits, seen["logits"]).mean()) < 1e-3


def _merge_saying(result, target, lines):
    from hf_peft_recipes import api

    said, api.runs._say = api.runs._say, lines.append
    try:
        return result.merge(target)
    finally:
        api.runs._say = said


def test_data_that_are_gone(merged_qlora, tmp_path):
    folder = edited(merged_qlora[0], tmp_path / "out", "dataset: null", "dataset: /nowhere/rows.jsonl")
    lines = []
    merged = _merge_saying(RunResult.read(folder), tmp_path / "m", lines)
    assert merged.record["compared_on"] == "fixed texts"
    assert merged.into == "dequantized"
    assert any(line.startswith("no held-out rows (") for line in lines)


@pytest.mark.parametrize(
    ("combination", "exact"),
    [({}, True), ({"combination_type": "ties", "density": 0.5}, False), ({"combination_type": "dare_linear", "density": 0.7}, False)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_several_adapters(with_head, tmp_path, combination, exact):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    first = with_adapter(with_head, tmp_path / "a", target_modules="all-linear", use_rslora=True)
    second = with_adapter(with_head, tmp_path / "b", target_modules=["q_proj", "v_proj"])
    merged = RunResult.read(first).merge(
        tmp_path / "m", adapters=[second], weights=[0.7, 0.3], combination=combination, progress=False
    )
    assert [adapter["weight"] for adapter in merged.record["adapters"]] == [0.7, 0.3]
    assert merged.variants["bf16"]["divergence"]["mean"] < 5e-3
    if not exact:
        return
    # W + 0.7 ΔW₁ + 0.3 ΔW₂, each ΔW as PEFT merges it alone.
    weights = []
    for folder in (None, first, second):
        base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
        model = base if folder is None else PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
        weights.append(model.model.layers[1].self_attn.q_proj.weight)
    expected = weights[0] + 0.7 * (weights[1] - weights[0]) + 0.3 * (weights[2] - weights[0])
    found = AutoModelForCausalLM.from_pretrained(merged.folder).model.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=1e-2)


def test_what_cannot_be_merged_is_one_line(with_head, tmp_path, monkeypatch):
    target = tmp_path / "m"
    folder = with_adapter(with_head, tmp_path / "out", target_modules="all-linear")
    result = RunResult.read(folder)
    other = with_adapter(folder, tmp_path / "other", target_modules=["q_proj"])
    larger = with_adapter(folder, tmp_path / "larger", target_modules=["q_proj"], rank=8)
    head = with_adapter(folder, tmp_path / "head", target_modules=["q_proj"], modules_to_save=["lm_head"])
    foreign = tmp_path / "foreign"
    shutil.copytree(other, foreign)
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "some/other"}))
    prompt = tmp_path / "prompt"
    shutil.copytree(folder, prompt)
    (prompt / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "PROMPT_TUNING"}))
    full = tmp_path / "full"
    shutil.copytree(folder, full)
    (full / "recipe.yaml").write_text(get_recipe("full").to_yaml())
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(empty))
    refused = [
        (result, {"into": "dequantised"}, "did you mean 'dequantized'"),
        (result, {"into": "requantized"}, "its base was not quantised; there is bf16"),
        (RunResult.read(full), {}, "nothing to merge: the run trained the whole model"),
        (RunResult.read(prompt), {}, "PEFT cannot merge PROMPT_TUNING"),
        (result, {"max_shard_size": "5 parsecs"}, "--max_shard_size"),
        (result, {"outtype": "f16"}, "--outtype belongs to --gguf"),
        (result, {"gguf": True}, "git clone https://github.com/ggml-org/llama.cpp"),
        (result, {"weights": [1.0, 2.0]}, "--with OTHER_OUT"),
        (result, {"adapters": [other], "combination": {"combination_type": "tiess"}}, "did you mean 'ties'"),
        (result, {"adapters": [other], "combination": {"combination_type": "ties"}}, "needs --density"),
        (result, {"adapters": [other], "combination": {"density": 0.5}}, "takes no --density"),
        (result, {"adapters": [other], "combination": {"densety": 0.5}}, "did you mean 'density'"),
        (result, {"adapters": [other], "weights": [1.0]}, "1 for 2 adapters"),
        (result, {"adapters": [larger], "combination": {"combination_type": "linear"}}, "the same r value"),
        (result, {"adapters": [head]}, "modules_to_save, which PEFT does not combine"),
        (result, {"adapters": [foreign]}, "was trained on 'some/other'"),
        (result, {"adapters": [empty]}, "holds no adapter"),
        (RunResult(empty, result.record), {}, "recipe.yaml"),
    ]
    for one, asked, message in refused:
        with pytest.raises(UserError, match=message) as caught:
            one.merge(target, **asked, progress=False)
        assert "\n" not in str(caught.value)
        assert not target.exists()
    with pytest.raises(UserError, match=r"is not empty \(mine.txt\) and holds no merge"):
        result.merge(used, overwrite=True)
    assert [path.name for path in used.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="is not empty"):
        result.merge(folder, overwrite=True)


def test_an_earlier_merge_is_replaced_only_when_asked(with_head, tmp_path):
    result, target = RunResult.read(with_head), tmp_path / "m"
    result.merge(target, max_shard_size="500KB", progress=False)
    with pytest.raises(UserError, match="already holds a merge"):
        result.merge(target)
    (target / "notes.txt").touch()
    with pytest.raises(UserError, match=r"would remove 'notes.txt'"):
        result.merge(target, overwrite=True)
    (target / "notes.txt").unlink()
    result.merge(target, overwrite=True, progress=False)
    assert [path.name for path in target.glob("model*")] == ["model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


KILLED = (
    MARK
    + """
import os, signal, sys
from hf_peft_recipes import RunResult
from hf_peft_recipes.merging import output
output.write_record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
RunResult.read(sys.argv[1]).merge(sys.argv[2], progress=False)
"""
)


def test_a_merge_that_is_killed_leaves_no_model(with_head, tmp_path):
    folder, target = with_head, tmp_path / "m"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(target)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    # The weights had been written already, beside.
    assert (tmp_path / ".m.unfinished" / "model.safetensors").is_file()
    RunResult.read(folder).merge(target, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


FULL_DISK = """
import os, sys
from hf_peft_recipes import RunResult, UserError
from hf_peft_recipes.merging import output, request
for when in ("early", "late"):
    if when == "late":
        # As if somebody else had filled the disk since.
        output.check_free_bytes = request.check_free_bytes = lambda *_: None
    try:
        RunResult.read(sys.argv[1]).merge(sys.argv[2] + "/m", progress=False)
    except UserError as error:
        print(error, os.listdir(sys.argv[2]))
"""


def test_a_full_disk(with_head, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here, so no small disk")
    script = f'mount -t tmpfs -o size=1m none {disk} && exec {sys.executable} -c "$0" "$@"'
    finished = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, FULL_DISK, str(with_head), str(disk)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    early, late = finished.stdout.splitlines()
    assert "takes about" in early and early.endswith("[]")
    assert "could not be written" in late and late.endswith("[]")


CONVERTER = """\
#!{python}
import json, pathlib, sys
words = sys.argv[1:]
print("words", json.dumps(words))
if "broken" in words:
    sys.exit("no such type")
pathlib.Path(words[words.index("--outfile") + 1]).write_bytes(b"GGUF" + json.dumps(words).encode())
"""


def test_gguf_by_the_converter_that_is_installed(merged_qlora, tmp_path, monkeypatch, capfd):
    """A stand-in for llama.cpp's script records its words; the real one is not installed here."""
    script = tmp_path / "bin" / "convert_hf_to_gguf.py"
    script.parent.mkdir()
    script.write_text(CONVERTER.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    result, target = RunResult.read(merged_qlora[0]), tmp_path / "m"
    merged = result.merge(target, gguf=True, outtype="q8_0", progress=False)
    # llama.cpp reads no 4-bit checkpoint.
    assert set(merged.variants) == {"bf16", "dequantized"}
    words = json.loads((target / "model.gguf").read_bytes()[4:])
    assert words == [str(target), "--outfile", str(target / "model.gguf"), "--outtype", "q8_0"]
    assert merged.record["gguf"] == {"file": "model.gguf", "outtype": "q8_0"}
    assert "model.gguf" in json.loads((target / "merge.json").read_text())["files"]
    with pytest.raises(UserError, match=r"llama\.cpp converts no 4-bit checkpoint"):
        result.merge(target, "requantized", gguf=True, overwrite=True)
    monkeypatch.setenv("LLAMA_CPP", str(script.parent))
    with pytest.raises(RecipeError, match="ended with code 1"):
        result.merge(target, "bf16", gguf=True, outtype="broken", overwrite=True, progress=False)
    assert "no such type" in capfd.readouterr().err
    assert (target / "model.safetensors").is_file()
    assert not (target / "model.gguf").exists()


@pytest.mark.usefixtures("real_processes")
def test_the_command(with_head, command, tmp_path):
    folder = with_head
    other = with_adapter(folder, tmp_path / "other", target_modules=["q_proj"])
    folder = with_adapter(folder, tmp_path / "out", target_modules=["v_proj"])
    finished = command(
        "merge", folder, tmp_path / "m", "--json", "--with", other, "--weights", 1, "0.5", "--evaluation.max_rows", 8,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    made = json.loads(finished.stdout)
    assert (made["into"], made["combination"]) == ("bf16", {"combination_type": "cat"})
    assert [adapter["weight"] for adapter in made["adapters"]] == [1.0, 0.5]
    assert made["compared_on"].startswith("8 rows of")
    assert "scoring bf16" in finished.stderr
    finished = command("merge", folder, tmp_path / "m", "--weights", "much", "--with", other)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.strip() == "error: --weights: 'much' is no number"


def test_a_base_that_was_stored_quantised(with_head, tmp_path):
    """Its weights from before are not to be had, so one way to merge less is there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    base = tmp_path / "base"
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, quantization_config=config, dtype=torch.bfloat16)
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(base)
    folder = edited(with_head, tmp_path / "out", "model:\n", f"model:\n  name_or_path: {base}\n")
    # As if it had been trained on it.
    (folder / "base_fingerprint.json").unlink()
    merged = RunResult.read(folder).merge(tmp_path / "m", progress=False)
    assert list(merged.variants) == ["requantized", "dequantized"]
    assert merged.into == "dequantized"
    assert "error" not in str(merged.variants)
    again = RunResult.read(folder).merge(tmp_path / "again", "requantized", progress=False)
    assert [seen["quantized"] for seen in reload(tmp_path, merged.folder, again.folder)] == [False, True]

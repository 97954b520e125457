"""The planner as it is asked: what it says, what it refuses, and a real run that must take what was told."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_samples import LLAMA_8B, LLAMA_70B, SMALL, job_of, small_config

from hf_peft_recipes import get_recipe
from hf_peft_recipes.device import detect_device, named_device
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.plan import plan_run
from hf_peft_recipes.plan.make_job import make_job
from hf_peft_recipes.plan.memory import plan_memory
from hf_peft_recipes.plan.recomputing import everything
from hf_peft_recipes.plan.shapes import read_shape

pytestmark = pytest.mark.usefixtures("whole_libraries")

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "numpy", "pydantic")


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a config.json and returns its folder."""

    def write(config, name="base"):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        return path

    return write


def test_a_real_run_takes_what_was_told(tmp_path, monkeypatch):
    # Threads that spin while others have the cores make a run many times as long, and no larger.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    from benchmarks.memory import WITHIN, cells, errors
    from hf_peft_recipes.bench.cell import run_cell

    cell = next(cell for cell in cells() if cell.name.startswith("lora-s-128-off"))
    line = run_cell(cell, tmp_path)
    assert line["status"] == "done", line
    assert {phase: error for phase, error in errors(line).items() if abs(error) > WITHIN} == {}


def test_json_has_stable_names(command, folder):
    finished = command("plan", "qlora", "--model", folder(LLAMA_8B), "--gpu", "24GiB", "--json")
    plan = json.loads(finished.stdout)
    assert {"total_bytes", "fits", "parts", "phases", "tokens_per_second", "advice"} <= set(plan)
    assert {"weights", "weights_quantized", "adapters", "optimizer", "activations"} <= set(plan["parts"])
    assert set(plan["phases"]) == {"load", "train", "evaluate", "save"}
    assert plan["total_bytes"] == max(plan["phases"].values())
    assert plan["phases"]["train"] == sum(plan["parts"].values())
    assert plan["memory_bytes"] == 24 * 2**30
    assert plan["fits"] == (plan["total_bytes"] <= plan["memory_bytes"])


def test_what_the_readme_says_is_typed(command, folder):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    typed = [line.split("#")[0].split()[1:] for line in text.splitlines() if line.startswith("hf-peft-recipes plan")]
    assert len(typed) == 4
    path, told = folder(LLAMA_8B), []
    for words in typed:
        finished = command(*(path if "/" in word else word for word in words))
        assert finished.returncode == 0, finished.stderr
        told.append(finished.stdout)
    assert "traced: one step takes" in told[2]
    assert "timed here" in told[3] and " rows" in told[3]


def test_the_table_names_parts_phases_and_what_was_assumed(command, folder):
    text = command("plan", "lora", "--model", folder(LLAMA_8B), "--gpu", "RTX 4090").stdout
    for word in ("saved activations", "load", "evaluate", "tokens/s", "assumed", "computing again", "at most"):
        assert word in text


def test_the_closed_form_takes_few_calls_and_imports_nothing_heavy(folder):
    words = ["plan", "lora", "--model", str(folder(LLAMA_70B)), "--gpu", "24GiB"]
    code = (
        "import cProfile, pstats, sys\n"
        "profile = cProfile.Profile()\n"
        "profile.enable()\n"
        "from hf_peft_recipes.cli.app import app\n"
        f"app({words!r}, standalone_mode=False)\n"
        "profile.disable()\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "print(pstats.Stats(profile).total_calls)\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    # Calls are the same on every machine, seconds are not: `benchmarks.planning` takes those.
    assert int(finished.stdout.split()[-1]) < 700_000


def test_what_does_not_fit_comes_with_what_does(folder):
    recipe = get_recipe("lora", model=str(folder(LLAMA_8B)), device="24GiB")
    plan = recipe.plan()
    assert not plan.fits
    assert plan.advice[0].fits and plan.advice[0].settings
    assert all(advice.total_bytes < plan.total_bytes for advice in plan.advice)
    fitted = recipe.fitted()
    assert fitted.plan().fits
    changed = next(iter(plan.advice[0].settings))
    assert fitted.resolve().entries[tuple(changed.split("."))].origin.startswith("fit (")
    assert fitted.fitted() is fitted


def test_what_fits_is_left_alone_and_what_never_fits_is_said(folder):
    path = str(folder(LLAMA_70B))
    fits = get_recipe("lora", device="H100")
    assert fits.plan().fits and not fits.plan().advice and fits.fitted() is fits
    with pytest.raises(UserError, match=r"full needs .* GiB on .*and no change that is known makes it fit"):
        get_recipe("full", model=path, device="24GiB").fitted()


def test_train_refuses_what_no_change_fits_before_it_loads_anything(command, folder):
    finished = command("train", "full", "--fit", "--model", folder(LLAMA_70B), "--dataset", "nowhere.jsonl")
    assert finished.returncode == 2
    assert "no change that is known makes it fit" in finished.stderr and finished.stderr.count("\n") == 1


@pytest.mark.parametrize("recompute", ["off", "auto"])
def test_the_largest_batch_and_length_fit_and_the_next_do_not(recompute):
    config = LLAMA_8B
    device = named_device("24GiB")
    recipe = get_recipe("qlora", model="x", device=device, recompute=recompute)
    plan = plan_run(recipe.resolved, config, "x", device)
    job, shape = make_job(recipe.resolved, config, "x", device), read_shape(config, "x")
    # By itself a run computes again what it has to: all, at the most.
    job = everything(job) if recompute == "auto" else job
    job = replace(job, quantized_elements=shape.linear_elements())
    for name, step in (("batch", 1), ("length", 64)):
        fixed = {"batch": 1} if name == "length" else {}
        at = plan.limits[name]
        inside, beyond = (plan_memory(replace(job, **{**fixed, name: number}), shape) for number in (at, at + step))
        assert inside.phases["train"] <= device.memory_bytes < beyond.phases["train"]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["lora", "qlora", "lora_fp8", "full"]), st.integers(1, 6), st.booleans(), st.booleans())
def test_more_takes_more(recipe, scale, checkpointing, on_gpu):
    device = named_device("H100") if on_gpu else replace(named_device("cpu"), bf16=True)
    config = {**LLAMA_8B, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3, "vocab_size": 4096}
    job = job_of(recipe, config, device, activation_checkpointing=checkpointing)
    shape = read_shape(config, "x")
    base = plan_memory(job, shape).phases["train"]

    def train(other, of=shape):
        return plan_memory(other, of).phases["train"]

    assert train(replace(job, length=job.length * (scale + 1))) >= base
    assert train(replace(job, batch=job.batch + scale)) >= base
    assert train(job, replace(shape, layers=shape.layers + scale)) >= base
    assert train(replace(job, checkpointing=True)) <= train(replace(job, checkpointing=False))
    if on_gpu:
        # Where processes hold parts the faster paths are left out, which may weigh more than what is shared.
        plain = replace(job, speed=False, devices=scale + 1)
        shared = [train(replace(plain, sharding=way)) for way in ("ddp", "zero1", "zero2")]
        assert shared == sorted(shared, reverse=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "unknown architecture 'lama'; did you mean 'llama'"),
        ({"hidden_size": 8}, "names no model_type"),
        ({"model_type": "llama", "hidden_size": 64}, "num_hidden_layers is missing"),
    ],
)
def test_a_config_that_cannot_be_planned_is_one_line(command, folder, config, message):
    finished = command("plan", "lora", "--model", folder(config), "--gpu", "H100")
    assert finished.returncode == 2
    assert message in finished.stderr and finished.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "H10"], "unknown device 'H10'; did you mean 'h100'"),
        (["--gpu", "0GiB"], "device '0GiB' has no memory"),
        (["--gpus", "0"], "--gpus 0: at least 1 is needed"),
        (["--gpus", "-1"], "--gpus -1: at least 1 is needed"),
        (["--gpus", "2", "--sharding", "fdsp"], "unknown sharding 'fdsp'"),
        (["--model", "./nowhere"], "no such folder"),
        (["--model", "nobody/no-such-model"], "not in the cache, and the Hub cannot be reached"),
        (["--model", "a b/c"], "neither a folder nor an id of the Hub"),
    ],
)
def test_a_users_mistake_is_one_line(command, words, message):
    finished = command("plan", "lora", *words)
    assert finished.returncode == 2
    assert message in finished.stderr and finished.stderr.count("\n") == 1


@pytest.fixture
def hub():
    """Return the address of a hub on this machine that knows one model."""

    dropped = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            known = self.path == "/somebody/llama/resolve/main/config.json"
            if "silent" in self.path:
                dropped.append(self.path)
                return
            body = json.dumps(LLAMA_8B).encode()
            self.send_response(200 if known else 404)
            for name, value in {
                "ETag": '"0123456789abcdef0123456789abcdef01234567"', "X-Repo-Commit": "a" * 40,
                **({"Content-Length": len(body)} if known else {"X-Error-Code": "RepoNotFound", "Content-Length": 0}),
            }.items():  # fmt: skip
                self.send_header(name, str(value))
            self.end_headers()
            if known and self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", dropped
    server.shutdown()


def test_a_model_of_the_hub_is_planned_from_its_config_and_offline_from_then_on(command, hub, tmp_path):
    words = ("plan", "lora", "--gpu", "H100", "--json", "--model")
    endpoint, dropped = hub
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
    finished = command(*words, "somebody/llama", **online)
    assert finished.returncode == 0, finished.stderr
    assert command(*words, "somebody/llama", HF_HOME=str(tmp_path)).stdout == finished.stdout
    missing = command(*words, "somebody/nothing", **online)
    assert missing.returncode == 2
    assert "neither a folder nor a model on the Hub" in missing.stderr and missing.stderr.count("\n") == 1
    silent = command(*words, "somebody/silent", **online)
    assert silent.returncode == 2 and len(dropped) == 1
    assert "the Hub cannot be reached" in silent.stderr and silent.stderr.count("\n") == 1


def test_an_architecture_without_a_closed_form_is_traced(folder):
    from transformers import OlmoConfig

    values = OlmoConfig(**SMALL).to_dict() | {"dtype": "bfloat16"}
    plan = get_recipe("lora", model=str(folder(values)), device="H100", max_length=128).plan()
    assert plan.way == "trace" and plan.parameters > plan.trainable > 0
    assert any("'olmo' has no closed form" in told for told in plan.assumptions)


def test_a_method_without_a_closed_form_is_traced(folder):
    path = str(folder(small_config("llama")))
    plan = get_recipe("lora", model=path, device="H100", max_length=128, use_dora=True, lora_dropout=0.1).plan()
    plain = get_recipe("lora", model=path, device="H100", max_length=128).plan()
    assert plan.way == "trace" and plan.trainable > plain.trainable


def test_a_cpu_is_measured_once(tmp_path, monkeypatch):
    from hf_peft_recipes.plan.profiles import find_profile, measure_cpu

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    device = detect_device()
    assert find_profile(device) is None
    measured = measure_cpu(device, seconds=0.05)
    assert measured.single_flops > 1e8 and measured.half_flops > 1e6 and measured.copy_bytes > 1e7
    assert measured.peak_flops(4) == measured.product_flops(4) == measured.single_flops
    assert find_profile(device) == measured
    path = next((tmp_path / "hf_peft_recipes").iterdir())
    fast = {**json.loads(path.read_text()), "single_flops": 1e15, "copy_bytes": 1.0}
    path.write_text(json.dumps(fast))
    again = measure_cpu(device, seconds=0.05)
    assert again.single_flops == 1e15 and again.copy_bytes > 1e7 and find_profile(device) == again
    path.write_text("broken")
    assert find_profile(device) is None


def test_plan_holds_for_a_loaded_model():
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    mine, named = (get_recipe("lora", device="H100", **given).plan() for given in ({"model": loaded}, {}))
    assert mine.parameters == named.parameters


def test_the_benchmark_has_its_cells():
    from benchmarks.memory import cells

    names = [cell.name for cell in cells()]
    assert len(names) == len(set(names)) == 3 * 3 * 3 * 2 + 2

"""The suite for GPUs, tried on the CPU: its lines, its resume, its time limit, and what it refuses."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from conftest import ROOT

from benchmarks.gpu import (
    ablation,
    block,
    checks,
    contenders,
    kernels,
    part,
    paths,
    peers,
    planned,
    smoke,
    throughput,
    watch,
)
from benchmarks.gpu.__main__ import PARTS, main
from benchmarks.gpu.part import Ledger, Part, run_part
from benchmarks.gpu.place import Place
from benchmarks.gpu.switches import SWITCHES
from hf_peft_recipes import list_recipes, speed
from hf_peft_recipes.bench import shapes, suite
from hf_peft_recipes.bench.cell import Cell, outcome, used_optimizer
from hf_peft_recipes.device import detect_device, named_device
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.speed import PATHS

LINE = {
    "type": "object",
    "required": [
        "schema_version",
        "name",
        "cell",
        "status",
        "seconds",
        "commit",
        "code",
        "dry_run",
        "hardware",
        "versions",
        "date",
    ],
    "properties": {
        "status": {"enum": ["done", "oom", "failed", "partial", "unavailable", "differs"]},
        "code": {"type": "string", "pattern": "^[0-9a-f]{12}$"},
        "seconds": {"type": "number", "minimum": 0},
        "versions": {"type": "object", "required": ["torch", "transformers", "peft", "trl", "bitsandbytes"]},
        "hardware": {"type": "object", "required": ["device", "cores", "system"]},
        "date": {"type": "string", "pattern": "^2[0-9]{3}-"},
    },
}
MEASURED = {
    "type": "object",
    "required": [
        "peaks",
        "held",
        "attention",
        "step_losses",
        "gradient_norms",
        "phases",
        "series",
        "parameters",
        "speed",
    ],
    "properties": {
        "attention": {"type": "array", "minItems": 1},
        "peaks": {"required": ["host_bytes", "allocated_bytes", "reserved_bytes", "device_used_bytes"]},
        "held": {"required": ["frozen", "trained", "optimizer"]},
        "step_losses": {"type": "array", "minItems": 2, "items": {"type": "number", "exclusiveMinimum": 0}},
        "gradient_norms": {"type": "array", "minItems": 2, "items": {"type": "number", "exclusiveMinimum": 0}},
    },
}


@dataclass(frozen=True)
class Task:
    name: str
    size: int = 1


def place(folder, **given):
    return Place(folder, detect_device(), **given)


def ledger(folder, **given):
    return Ledger(folder / "out.jsonl", folder / "committed.jsonl", **given)


def counting(run=None, seconds=0.0, names="abc"):
    """Return a part of cheap cells, and the list of those that ran."""
    ran = []

    def noted(task, place):
        ran.append(task.name)
        return run(task) if run else {"status": "done"}

    cells = [Task(name) for name in names]
    return Part(lambda place: cells, noted, lambda task, place: seconds, lambda task: []), ran


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with the tiny model, in bfloat16 and in NF4."""
    folder = tmp_path_factory.mktemp("models")
    for quantized in (False, True):
        shapes.write_model(shapes.model_folder(folder, "tiny", quantized), "tiny", quantized)
    return folder


def one(name, folder, models, monkeypatch, pick=0):
    """Run one cell of the dry run of a part through its real processes; return its line."""
    here = PARTS[name]
    shutil.copytree(models, folder / "scratch" / "models")
    tried = here.cells(place(folder, dry_run=True))[pick]
    monkeypatch.setitem(PARTS, name, replace(here, cells=lambda place: [tried]))
    code = main(["--out", str(folder / "out"), "--scratch", str(folder / "scratch"), "--part", name, "--dry_run"])
    (line,) = suite.read_lines(folder / "out" / f"{name}.jsonl")
    jsonschema.validate(line, LINE)
    assert line["dry_run"] and line["cell"] == json.loads(json.dumps(asdict(tried)))
    assert code == (1 if line["status"] == "failed" else 0)
    return line


@pytest.mark.slow
def test_the_four_bit_files_are_what_loading_makes(tmp_path, models, monkeypatch):
    line = one("smoke", tmp_path, models, monkeypatch)
    assert line["status"] == "done", line
    assert {finding["name"]: finding["ok"] for finding in line["findings"]} == {
        "linear layers in 4 bits": True, "bytes of the weights": True, "bytes of one of many": True,
        "share of the weights that is lost": True, "files in NF4 are what loading makes": True,
        "difference of their logits": True,
    }  # fmt: skip


@pytest.mark.parametrize("quantized", [False, True])
def test_a_bare_step_takes_what_the_formulas_say(models, quantized):
    findings = {finding["name"]: finding for finding in checks.check_bare_step(str(models / "tiny"), 64, quantized)}
    assert all(finding["ok"] for finding in findings.values()), findings
    loss = findings["bytes of the loss, held whole"]
    assert loss["expected"] == 12 * 2048 * 64 and abs(loss["found"] / loss["expected"] - 1) < 0.01


@pytest.mark.parametrize("quantized", [False, True])
def test_the_faster_paths_compute_what_the_model_does(models, quantized):
    findings = {one["name"]: one for one in paths.check_paths(str(models / "tiny"), 64, quantized)}
    assert all(one["ok"] for one in findings.values()), findings
    assert len(findings) == (4 if quantized else 3)


@pytest.mark.slow
def test_plan_trains_from_files_in_four_bits(tmp_path, models, monkeypatch):
    line = one("plan", tmp_path, models, monkeypatch, pick=1)
    assert line["status"] == "done", line
    assert line["cell"]["quantized_files"] and line["cell"]["checkpointing"]
    jsonschema.validate(line["measured"], MEASURED)
    assert line["optimizer"] == {"asked": "adamw_torch_fused", "used": "adamw_torch_fused"}
    compared = line["compared"]
    assert compared["off"] == pytest.approx(compared["planned"] / compared["allocated"] - 1)
    planned_adapters, found_adapters = compared["parts"]["trained"]
    assert planned_adapters == found_adapters == 4 * line["measured"]["parameters"]["trainable"]
    assert compared["parts"]["optimizer"] == [286832, 286832]


@pytest.mark.slow_sweep
def test_contenders_take_turns_and_who_is_not_there_is_named(tmp_path, models, monkeypatch):
    monkeypatch.setitem(throughput.RIVALS, "qlora", ("unsloth",))
    line = one("recipes", tmp_path, models, monkeypatch)
    assert line["status"] == "partial", line
    assert [(run["contender"], run["turn"]) for run in line["runs"]] == [("ours", 1), ("ours", 2)]
    assert "unsloth is not installed" in line["unavailable"]["unsloth"]
    first, second = (run["measured"] for run in line["runs"])
    jsonschema.validate(first, MEASURED)
    assert first["step_losses"] == pytest.approx(second["step_losses"], rel=1e-5)
    assert line["compared"]["ours"]["tokens_per_second_of_turns"] == [
        run["figures"]["tokens_per_second"] for run in line["runs"]
    ]


@pytest.mark.slow
def test_ablation_trains_with_and_without(tmp_path, models, monkeypatch):
    line = one("ablation", tmp_path, models, monkeypatch)
    assert line["status"] == "done", line
    ours, off = ("ours", list(PATHS)), ("speed_off", [])
    assert [(run["contender"], run["measured"]["speed"]) for run in line["runs"]] == [ours, off, ours, off]
    compared = line["compared"]["speed_off"]
    assert compared["same_tokens"] and compared["loss_difference"] < 0.01
    assert {"times_as_fast", "times_the_memory"} <= set(compared)


def test_every_faster_path_is_left_out_by_a_switch(monkeypatch):
    monkeypatch.setattr(speed, "PATHS", dict(PATHS))
    monkeypatch.setattr(speed, "ATTENTION", dict(speed.ATTENTION))
    monkeypatch.setattr("hf_peft_recipes.speed.nf4.has_kernel", None)
    left = {}
    for name, switch in SWITCHES.items():
        monkeypatch.setattr(speed, "PATHS", dict(PATHS))
        switch()
        left[name] = set(PATHS) - set(speed.PATHS)
    assert left["speed_off"] == set(PATHS) == set().union(*(left[name] for name in left if name != "speed_off"))
    assert left["no_lora_linear"] == {"lora_linear", "gated_mlp", "qkv"} and left["no_gated_mlp"] == {"gated_mlp"}
    assert speed.ATTENTION == {}
    from hf_peft_recipes.speed import nf4

    assert nf4.has_kernel() is False
    tried = {name for pairs in ablation.PAIRS.values() for pair in pairs for name in pair}
    assert tried == set(SWITCHES)


@pytest.mark.slow_sweep
def test_profile_says_where_the_time_goes(tmp_path, models, monkeypatch):
    line = one("profile", tmp_path, models, monkeypatch)
    assert line["status"] == "done", line
    profile = line["measured"]["profile"]
    assert profile["by"] == "operator"
    assert sum(profile["shares"].values()) == pytest.approx(1)
    assert profile["shares"]["matrix products"] > 0.01 and profile["shares"]["optimizer"] > 0
    assert len(profile["top"]) == kernels.TOP
    assert "aten::mm" in {kernel["name"] for kernel in profile["top"]}


def test_peers_says_that_there_are_none(tmp_path, models, monkeypatch, capsys):
    line = one("peers", tmp_path, models, monkeypatch)
    assert line["status"] == "unavailable" and "--peer_site" in line["error"]
    assert "peers: 1 measured" in capsys.readouterr().out


def test_without_a_gpu_it_is_refused_in_one_line(tmp_path):
    words = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and not found.stdout
    (said,) = found.stderr.splitlines()
    assert said.startswith("error: no GPU is here") and "--dry_run" in said
    assert not (tmp_path / "out").exists()


def test_a_busy_gpu_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.gpu.__main__.detect_device", lambda: named_device("H200"))
    monkeypatch.setattr(suite, "used_bytes", lambda: 5 * 2**30)
    assert main(["--out", str(tmp_path / "out")]) == 2
    assert "busy: 5.0 GiB" in capsys.readouterr().err


def test_it_goes_on_where_it_stopped(tmp_path):
    first, ran = counting()
    assert len(run_part(first, place(tmp_path), ledger(tmp_path), 60).lines) == 3
    again, ran = counting(names="abcd")
    found = run_part(again, place(tmp_path), ledger(tmp_path), 60)
    assert ran == ["d"] and found.known == 3
    assert [line["name"] for line in suite.read_lines(tmp_path / "out.jsonl")] == ["a", "b", "c", "d"]


def test_committed_results_count_too(tmp_path):
    first, _ = counting()
    run_part(first, place(tmp_path), ledger(tmp_path), 60)
    shutil.move(tmp_path / "out.jsonl", tmp_path / "committed.jsonl")
    again, ran = counting(names="abcd")
    run_part(again, place(tmp_path), ledger(tmp_path), 60)
    assert ran == ["d"]
    assert [line["name"] for line in suite.read_lines(tmp_path / "out.jsonl")] == ["d"]


def test_what_has_no_result_comes_before_what_has_an_old_one(tmp_path, monkeypatch):
    first, _ = counting(names="ab")
    run_part(first, place(tmp_path), ledger(tmp_path), 60)
    for module in (part, suite):
        monkeypatch.setattr(module, "code_digest", lambda: "0" * 12)
    again, ran = counting(names="abcd")
    run_part(again, place(tmp_path), ledger(tmp_path, keep=True), 60)
    assert ran == ["c", "d"]
    again, ran = counting(names="abcde")
    run_part(again, place(tmp_path), ledger(tmp_path), 60)
    assert ran == ["e", "a", "b"]


def test_a_cell_that_failed_is_tried_again_and_costs_the_others_nothing(tmp_path):
    def fail(task):
        if task.name == "b":
            raise ValueError("no such kernel")
        return {"status": "oom" if task.name == "c" else "done"}

    broken, _ = counting(fail)
    found = run_part(broken, place(tmp_path), ledger(tmp_path), 60)
    assert [(line["name"], line["status"]) for line in found.lines] == [("a", "done"), ("b", "failed"), ("c", "oom")]
    assert found.lines[1]["error"] == "ValueError: no such kernel"
    mended, ran = counting()
    run_part(mended, place(tmp_path), ledger(tmp_path), 60)
    assert ran == ["b"]
    assert len(suite.read_lines(tmp_path / "out.jsonl")) == 3


def test_no_cell_is_begun_that_would_take_longer_than_what_is_left(tmp_path):
    cells = [Task("long", 100), Task("short", 1)]
    ran = []
    timed = Part(
        lambda place: cells, lambda task, place: ran.append(task.name) or {"status": "done"},
        lambda task, place: float(task.size), lambda task: [],
    )  # fmt: skip
    found = run_part(timed, place(tmp_path), ledger(tmp_path), 60)
    assert ran == ["short"] and found.left == ["long"]

    slow, ran = counting(lambda task: time.sleep(0.2) or {"status": "done"}, seconds=0.1)
    found = run_part(slow, place(tmp_path), ledger(tmp_path), 0.25)
    assert ran == ["a"] and found.left == ["b", "c"]


def test_the_minutes_end_a_part_with_code_0(tmp_path, capsys):
    words = ["--out", str(tmp_path / "out"), "--part", "plan", "--dry_run", "--minutes", "0"]
    assert main(words) == 0
    assert "plan: 0 measured, 0 known before, 3 left for want of time (lora-tiny-64-off" in capsys.readouterr().out


def test_models_go_when_no_later_cell_needs_them(tmp_path, monkeypatch):
    here = place(tmp_path)
    for name in ("tiny", "s", "m-nf4"):
        (here.models / name).mkdir(parents=True)
        (here.models / name / "config.json").touch()
    here.make_room([("tiny", False)], [("m", True)])
    assert sorted(folder.name for folder in here.models.iterdir()) == ["m-nf4", "tiny"]
    # Where the disk is full, a later cell's model is made again.
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    here.make_room([("l", False)], [("m", True), ("tiny", False)])
    assert not list(here.models.iterdir())


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("gpu", ["H100", "H200"])
def test_every_cell_has_time_in_eight_minutes(tmp_path, name, gpu):
    here = Place(tmp_path, named_device(gpu), peer_site=tmp_path)
    cells = PARTS[name].cells(here)
    assert max(PARTS[name].seconds(cell, here) for cell in cells) < 8 * 60
    assert len({cell.name for cell in cells}) == len(cells)


def test_every_recipe_of_the_registry_is_in_smoke(tmp_path):
    found = [check.recipe for check in smoke.cells(place(tmp_path)) if check.kind == "two_steps"]
    assert sorted(found) == list_recipes()


def test_paged_optimizers_are_replaced():
    assert used_optimizer("paged_adamw_8bit") == "adamw_torch_fused"
    assert used_optimizer("adamw_torch") == "adamw_torch"


def test_what_the_card_cannot_hold_is_left_out_but_for_what_is_just_above(tmp_path):
    big = Place(tmp_path, replace(named_device("H200"), memory_bytes=2**31))
    assert not planned.wanted(Cell("full", "1b", 512, True), big)
    assert planned.wanted(Cell("lora", "1b", 512, True), Place(tmp_path, named_device("H200")))


def test_the_table_of_plan_is_whole(tmp_path):
    cells = planned.cells(place(tmp_path))
    assert len({cell.name for cell in cells}) == len(cells) == 3 * 4 * 4 * 2 + 4 * 2
    assert {cell.recipe for cell in cells if cell.shape == "32b"} == {"qlora"}
    assert all(cell.quantized_files for cell in cells if cell.shape == "32b")
    assert [cell.shape for cell in cells[:3]] == ["8b", "8b", "1b"]


def test_the_gap_between_tensors_and_process_is_told_by_parts():
    parts = {"weights": 100, "adapters": 4, "optimizer": 8, "activations": 50, "fragmentation": 3, "libraries": 40}
    line = {
        "cell": {"recipe": "lora"},
        "planned": {"parts": parts, "phases": {"train": 205}},
        "measured": {
            "peaks": {"host_bytes": 1, "allocated_bytes": 160, "reserved_bytes": 170, "device_used_bytes": 230},
            "held": {"frozen": 100, "trained": 4, "optimizer": 8, "context": 60, "cublas_workspace": 2},
        },
    }
    compared = planned.compare(line)
    assert compared["planned"] == 162 and compared["off"] == pytest.approx(162 / 160 - 1)
    assert compared["gap"] == {
        "fragmentation": [3, 10], "context": [40, 60], "cublas_workspace": [0, 2], "process": [205, 230]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)", "attention"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("torch_attn::_varlen_attn_backward", "attention"),
        ("_forward_kernel", "loss head"),
        ("_rms_norm_forward_kernel", "element-wise"),
        ("_dequantize", "dequantization"),
        ("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>", "dequantization"),
        ("void at::native::multi_tensor_apply_kernel<..., FusedAdamMathFunctor<float, 4>>", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>", "element-wise"),
        ("aten::addmm", "matrix products"),
        ("aten::_to_copy", "copies"),
    ],
)
def test_kernels_are_put_into_groups(name, group):
    assert kernels.group_of(name) == group


def test_attention_is_known_by_its_operators():
    names = ["torch_attn::_varlen_attn", "aten::_flash_attention_forward", "aten::scaled_dot_product_attention"]
    assert all(watch._ATTENTION.search(name) for name in names) and not watch._ATTENTION.search("aten::mm")


def test_a_profile_counts_what_is_idle():
    found = kernels.StepProfile(2.0, "kernel", {"gemm": (1.0, 3), "Memcpy DtoH": (0.5, 1)}).shown()
    assert found["shares"] == {"matrix products": 0.5, "idle": 0.25, "copies": 0.25}
    assert found["top"][0] == {"name": "gemm", "group": "matrix products", "seconds": 1.0, "share": 0.5, "calls": 3}


def test_contenders_are_held_against_the_first():
    def run(contender, rate, peak, losses):
        measured = {
            "peaks": {"allocated_bytes": peak, "host_bytes": 1}, "attention": ["x"], "series": {"tokens": [64, 64]},
            "step_losses": losses, "gradient_norms": [1.0, 1.0],
        }  # fmt: skip
        figures = {"tokens_per_second": rate, "step_seconds": 1.0, "step_seconds_percentiles": {}}
        return {"contender": contender, "turn": 1, "status": "done", "measured": measured, "figures": figures}

    runs = [run("ours", 100, 10, [2.0, 1.0]), run("trl_best", 40, 20, [2.0, 1.1]), run("ours", 120, 12, [2.0, 1.0])]
    compared = block.compare(runs, ("ours", "trl_best"))
    assert compared["ours"]["tokens_per_second"] == 110
    assert compared["trl_best"]["times_as_fast"] == pytest.approx(40 / 110)
    assert compared["trl_best"]["times_the_memory"] == pytest.approx(20 / 12)
    assert compared["trl_best"]["loss_difference"] == pytest.approx(0.1)
    assert compared["trl_best"]["same_tokens"]
    assert not peers._agree(compared["trl_best"])


def test_who_cannot_run_is_told_apart_from_who_fails():
    finished = subprocess.CompletedProcess([], 0, "", "")
    assert outcome(finished, {"unavailable": "not here"}) == {"status": "unavailable", "error": "not here"}
    starved = subprocess.CompletedProcess([], 1, "", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate")
    assert outcome(starved, None)["status"] == "oom"


def test_every_contender_can_be_built():
    named = {name for line in throughput.RIVALS.values() for name in line} | set(peers.CONTENDERS) | set(SWITCHES)
    assert named <= set(contenders.BUILDERS)


def test_files_in_four_bits_are_a_quarter(tmp_path):
    assert shapes.file_bytes("8b") == pytest.approx(16.06e9, rel=0.001)
    assert shapes.file_bytes("32b", quantized=True) == pytest.approx(19.2e9, rel=0.02)
    with pytest.raises(UserError, match="unknown shape"):
        shapes.model_folder(tmp_path, "9b")


def test_a_result_file_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "peers.jsonl").write_text("[]\n", encoding="utf-8")
    assert main(["--out", str(tmp_path), "--part", "peers", "--dry_run"]) == 2
    assert "line 1: no result of a benchmark" in capsys.readouterr().err


def test_the_description_names_every_part():
    import benchmarks.gpu

    for name in PARTS:
        assert f"| `{name}` |" in str(benchmarks.gpu.__doc__)
    assert Path(benchmarks.gpu.__file__).parent.name == "gpu"

"""What is computed again on the way back: the same to the last bit, with less kept, and no more of it than is needed."""

import copy
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import FAST
from peft import LoraConfig, get_peft_model
from plan_samples import LLAMA_8B, job_of, small_config
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForMaskedLM
from trl.models.utils import disable_gradient_checkpointing

from hf_peft_recipes import get_recipe
from hf_peft_recipes.bench.cell import Cell
from hf_peft_recipes.bench.shapes import make_model
from hf_peft_recipes.device import named_device
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.models import quantize
from hf_peft_recipes.plan.estimates import Estimates
from hf_peft_recipes.plan.recomputing import RESERVE, choose
from hf_peft_recipes.plan.shapes import read_shape
from hf_peft_recipes.preflight import _may_change
from hf_peft_recipes.spec.recompute import NOTHING, Recompute, read_recompute
from hf_peft_recipes.spec.sameness import require_same
from hf_peft_recipes.speed import recompute, speed_up
from hf_peft_recipes.speed.gated_mlp import GatedMlp

LAYERS = 4
LENGTHS = [5, 1, 40, 18, 2]
TOKENS = torch.randint(5, 200, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])[None]
AMOUNTS = [
    Recompute(0, 1), Recompute(0, LAYERS), Recompute(1, 2), Recompute(LAYERS, 0), Recompute(LAYERS, 0, offloads=True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("auto", None),
        ("off", NOTHING),
        ("1 block", Recompute(1, 0)),
        ("12 feed-forwards", Recompute(0, 12)),
        ("4 blocks + 1 feed-forward", Recompute(4, 1)),
        ("4 blocks + offloading", Recompute(4, 0, offloads=True)),
        ("1 block + 2 feed-forwards + offloading", Recompute(1, 2, offloads=True)),
    ],
)
def test_an_amount_is_read_as_it_is_written(text, amount):
    assert read_recompute(text) == amount
    assert amount is None or str(amount) == text


def test_an_amount_is_told_with_the_number_of_layers():
    assert Recompute(4, 12).of(30) == "4 of 30 blocks + 12 feed-forwards"
    assert Recompute(0, 12).of(30) == "12 of 30 feed-forwards" and NOTHING.of(30) == "off"
    assert Recompute(30, 0, offloads=True).of(30) == "30 of 30 blocks + offloading"


@pytest.mark.parametrize("value", ["some", "12", "4 blocks, 2 feed-forwards", "1 block + 2 blocks", True, -1])
def test_what_is_no_amount_is_one_line(value):
    with pytest.raises(UserError, match=r"recompute = .*: auto, off, or '4 blocks \+ 12 feed-forwards' is wanted"):
        get_recipe("lora", recompute=value)


@pytest.mark.parametrize("value", ["offloading", "4 feed-forwards + offloading"])
def test_only_inputs_of_blocks_are_offloaded(value):
    with pytest.raises(UserError, match=r"what is offloaded are inputs of blocks, as in '4 blocks \+ offloading'"):
        get_recipe("lora", recompute=value)


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_upstreams_checkpointing_has_all_blocks_already(name):
    with pytest.raises(UserError, match=r"recompute = 2 blocks .* beside training\.activation_checkpointing"):
        get_recipe("lora", recompute="2 blocks", **{name: True})
    assert get_recipe("lora", **{name: True}).plan("24GiB").recompute == NOTHING


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def lora(dtype=torch.float32, fast=True, quantization=None, **settings):
    """Return a function that makes the same model with LoRA each time, on the faster paths or off them."""
    config = AutoConfig.from_pretrained(MODEL_DIR)
    config.num_hidden_layers, config.layer_types = LAYERS, None
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain = quantize(plain, quantization) if quantization else plain
    plain = get_peft_model(plain, LoraConfig(r=4, target_modules="all-linear", **settings)).train()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) * (0.02 if "lora_B" in name else 0.1)

    def make(amount=NOTHING):
        model = copy.deepcopy(plain)
        if fast:
            speed_up(model, "cpu")
        assert recompute.install(model, amount) == amount
        return model

    return make


def step(model, autocast=False):
    """Return loss and gradients of two micro-batches that are packed rows."""
    torch.manual_seed(3)
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    for tokens in (TOKENS, TOKENS.flip(1)):
        with context:
            loss = model(tokens, position_ids=POSITIONS, labels=tokens, use_cache=False).loss
        loss.backward()
    # What is drawn after it must not depend on what was drawn again.
    drawn = torch.rand(1)
    return [loss.detach(), drawn, *(one.grad for one in model.parameters() if one.grad is not None)]


def same(found, expected):
    return len(found) == len(expected) > 2 and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("amount", AMOUNTS, ids=str)
@pytest.mark.parametrize(
    ("settings", "autocast"),
    [
        ({}, False),
        ({"dtype": torch.bfloat16}, True),
        ({"dtype": torch.bfloat16, "quantization": NF4}, True),
        ({"lora_dropout": 0.3}, False),
        ({"fast": False, "lora_dropout": 0.3}, False),
        ({"fast": False, "dtype": torch.bfloat16}, True),
    ],
    ids=["float32", "bfloat16", "NF4", "dropout", "PEFT's paths", "PEFT's paths in bfloat16"],
)
def test_gradients_are_the_same_to_the_last_bit(settings, autocast, amount):
    make = lora(**settings)
    assert same(step(make(amount), autocast), step(make(), autocast))


def kept_bytes(model):
    """Return the bytes that autograd keeps of a forward pass, weights left out, each storage once."""
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        # Held, so that no other storage gets the same address.
        seen.setdefault(storage.data_ptr(), (storage.nbytes(), tensor))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(TOKENS, position_ids=POSITIONS, labels=TOKENS, use_cache=False).loss
    total = sum(size for pointer, (size, _) in seen.items() if pointer not in weights)
    del loss
    return total


@pytest.mark.parametrize("fast", [True, False], ids=["faster paths", "PEFT's paths"])
def test_each_layer_that_is_computed_again_keeps_less(fast):
    make = lora(fast=fast)
    config = make().config
    kept = {amount: kept_bytes(make(amount)) for amount in (NOTHING, *AMOUNTS)}
    inner = TOKENS.numel() * config.intermediate_size * torch.float32.itemsize
    # Gate and up on the faster path; on PEFT's also what was activated, and the product.
    assert kept[NOTHING] - kept[Recompute(0, 1)] >= (2 if fast else 4) * inner
    a_layer = (kept[NOTHING] - kept[Recompute(0, LAYERS)]) / LAYERS
    assert kept[NOTHING] - kept[Recompute(0, 1)] == a_layer
    assert kept[Recompute(LAYERS, 0)] < kept[Recompute(1, 2)] < kept[Recompute(0, 1)]


@pytest.mark.parametrize("fast", [True, False], ids=["faster paths", "PEFT's paths"])
def test_what_is_offloaded_is_the_input_of_each_block_and_nothing_else(fast, monkeypatch):
    elsewhere = []

    def pack(tensor):
        elsewhere.append(tensor.numpy().copy())
        return len(elsewhere) - 1

    def hooks(pin_memory):
        assert not pin_memory
        return saved_tensors_hooks(pack, lambda number: torch.from_numpy(elsewhere[number].copy()))

    make = lora(fast=fast, lora_dropout=0.3)
    expected = step(make())
    monkeypatch.setattr(recompute, "save_on_cpu", hooks)
    model = make(Recompute(LAYERS, 0, offloads=True))
    assert same(step(model), expected)
    hidden = (*TOKENS.shape, model.config.hidden_size)
    # Beside it checkpointing saves a tensor of no elements, which holds its place.
    assert [one.shape for one in elsewhere if one.size] == [hidden] * 2 * LAYERS


def test_a_gpu_that_all_blocks_are_too_much_for_has_their_inputs_in_the_hosts_memory():
    options = {"max_length": 8192, "per_device_train_batch_size": 8, "recompute": "off", "evaluation.max_rows": 0}
    estimates = Estimates(read_shape(LLAMA_8B, "x"), None)
    found = {}
    for kind in ("24GiB", "cpu"):
        job = job_of("qlora", LLAMA_8B, replace(named_device(kind), bf16=True), **options)
        blocks, offloaded = (Recompute(32, 0, offloads) for offloads in (False, True))
        sizes = [estimates.memory(replace(job, recompute=amount)).total_bytes for amount in (blocks, offloaded)]
        inputs = 32 * 8 * 8192 * 4096 * 2
        assert sizes[0] - sizes[1] == (pytest.approx(inputs, rel=0.1) if kind == "24GiB" else 0)
        for room in (sizes[0] * 1.05, sizes[0] * 0.95, sizes[0] * 0.2):
            device = replace(job.device, memory_bytes=int(room))
            found[kind, room] = choose(replace(job, device=device), estimates)
    assert list(found.values())[1:3] == [Recompute(32, 0, offloads=True)] * 2
    assert not any(amount.offloads for (kind, _), amount in found.items() if kind == "cpu")
    assert not next(iter(found.values())).offloads
    times = [estimates.seconds(replace(job_of("qlora", LLAMA_8B, named_device("24GiB"), **options), recompute=amount))
             for amount in (blocks, offloaded)]  # fmt: skip
    assert 1 < times[1] / times[0] < 1.1


def test_a_copy_computes_with_its_own_weights():
    for amount in AMOUNTS:
        model = lora()(amount)
        other = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.data.zero_()
        assert same(step(other), step(lora()()))


def test_who_waits_for_a_module_is_called():
    called, make = [], lora()
    model = make(Recompute(1, 2))
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    torch.testing.assert_close(step(model), step(make()), rtol=1e-4, atol=1e-6)
    assert any(name.endswith("layers.0.mlp.act_fn") for name in called)


def test_nothing_is_computed_again_where_there_is_no_way_back(monkeypatch):
    make = lora()
    plain, again = make().eval(), make(Recompute(1, 2)).eval()
    monkeypatch.setattr(GatedMlp, "apply", None)
    with torch.no_grad():
        assert torch.equal(plain(TOKENS).logits, again(TOKENS).logits)


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 3}
    return BertForMaskedLM(BertConfig(vocab_size=200, **sizes)).train()


def test_a_model_without_feed_forwards_of_that_name_has_its_blocks():
    found = []
    for amount in (NOTHING, Recompute(2, 0)):
        model = bert()
        assert recompute.install(model, amount) == amount
        torch.manual_seed(3)
        model(TOKENS, labels=TOKENS).loss.backward()
        found.append([one.grad for one in model.parameters()])
    assert same(*found)
    assert recompute.install(bert(), Recompute(1, 1)) == Recompute(1, 0)


def test_upstreams_switch_is_left_alone():
    model = lora()(Recompute(2, 1))
    kept, before = kept_bytes(model), model.is_activation_checkpointing
    with disable_gradient_checkpointing(model, {"use_reentrant": False}):
        pass
    assert not before and kept_bytes(model) == kept


def test_a_block_that_writes_a_cache_runs_once():
    model = lora()(Recompute(LAYERS, 0))
    cached = model(TOKENS, labels=TOKENS, use_cache=True)
    assert cached.past_key_values.get_seq_length() == TOKENS.numel()
    cached.loss.backward()
    assert cached.past_key_values.get_seq_length() == TOKENS.numel()


def test_more_than_the_model_has_is_a_users_mistake(tmp_path, jsonl):
    recipe = get_recipe("lora", dataset=str(jsonl), recompute="400 blocks", **FAST)
    with pytest.raises(UserError, match=r"recompute = '400 blocks': of this model \d+ blocks can be, no more"):
        recipe.train(tmp_path / "run")


def fits(job, estimates, amount):
    return estimates.memory(replace(job, recompute=amount)).total_bytes <= job.device.memory_bytes


@pytest.mark.parametrize("recipe", ["lora", "full"])
@pytest.mark.parametrize("kind", ["cpu", "24GiB"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.6, 0.9, 1.0, 1.1])
def test_what_is_chosen_fits_and_is_the_cheapest_and_one_less_does_not_fit(recipe, kind, share):
    config = {**LLAMA_8B, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 7, "vocab_size": 4096}
    device = replace(named_device(kind), bf16=True)
    options = {"max_length": 1024, "per_device_train_batch_size": 4, "evaluation.max_rows": 0}
    job = job_of(recipe, config, device, recompute="off", **options)
    estimates, layers = Estimates(read_shape(config, "x"), None), 7
    every = [Recompute(b, f) for b in range(layers + 1) for f in range(layers + 1 - b)]
    sizes = {amount: estimates.memory(replace(job, recompute=amount)).total_bytes for amount in every}
    most, least = sizes[NOTHING], sizes[Recompute(layers, 0)]
    job = replace(job, device=replace(device, memory_bytes=int(most - share * (most - least))))
    found = choose(job, estimates)
    everything = Recompute(layers, 0, offloads=kind != "cpu")
    if share > 1:
        assert found == everything
        return
    assert fits(job, estimates, found)
    if share == 0:
        assert found == NOTHING
        return
    # Where something is computed again, a little is left for what a plan is off by.
    filled = (1 - RESERVE) * job.device.memory_bytes
    enough = [amount for amount in every if sizes[amount] <= filled]
    if not enough:
        assert found == everything
        return
    assert sizes[found] <= filled
    for fewer in (replace(found, blocks=found.blocks - 1), replace(found, feed_forwards=found.feed_forwards - 1)):
        assert min(fewer.blocks, fewer.feed_forwards) < 0 or sizes[fewer] > filled
    seconds = {amount: estimates.seconds(replace(job, recompute=amount)) for amount in enough}
    assert seconds[found] <= 1.01 * min(seconds.values())


def test_layers_that_differ_are_computed_again_all_or_none():
    config = {**small_config("llama"), "num_hidden_layers": 6}
    options = {"target_modules": r".*layers\.[01]\..*q_proj", "recompute": "off", "evaluation.max_rows": 0}
    options |= {"max_length": 1024, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 1}
    job = job_of("lora", config, named_device("24GiB"), **options)
    estimates = Estimates(read_shape(config, "x"), None)
    taken = estimates.memory(job).total_bytes
    assert choose(replace(job, device=replace(job.device, memory_bytes=taken)), estimates) == NOTHING
    assert choose(replace(job, device=replace(job.device, memory_bytes=taken - 1)), estimates) == Recompute(6, 0)


def test_the_plan_says_what_is_computed_again(command, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    flags = ("--per_device_train_batch_size", "4", "--evaluation.batch_size", "4")
    words = ("plan", "lora", "--model", tmp_path, "--gpu", "24GiB", *flags)
    off, auto = (json.loads(command(*words, "--recompute", asked, "--json").stdout) for asked in ("off", "auto"))
    assert not off["fits"] and (off["recompute"], off["recompute_time_factor"]) == ("off", 1.0)
    offered = next(change for change in off["advice"] if change["set"] == {"recompute": "auto"})
    amount = read_recompute(auto["recompute"])
    assert offered["change"] == f"recompute {amount.of(32)}" and offered["time_factor"] > 1
    assert offered["total_bytes"] == auto["total_bytes"] < off["total_bytes"]
    assert auto["recompute_time_factor"] == offered["time_factor"]
    smaller = auto["advice"][0]
    assert smaller["change"].startswith("micro-batch 2 × accumulation 2") and smaller["fits"]
    assert all(change["time_factor"] < 1 and change["fits"] for change in auto["advice"])
    told = " ".join(command(*words).stdout.split())
    assert f"computing again {amount.of(32)} (time a token × {offered['time_factor']:.2f})" in told


TIGHT = """
import sys
from hf_peft_recipes import device

room = int(sys.argv.pop(1))
device._host_memory_bytes = lambda: room
from hf_peft_recipes.cli.app import main

main()
"""


@pytest.mark.usefixtures("real_processes")
def test_a_real_run_fits_into_what_would_be_too_little_otherwise(tmp_path, monkeypatch):
    # Threads that spin while others have the cores make a run many times as long, and no larger.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    # Libraries take what they take in users' processes.
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    cell = Cell("lora", "l", 1024, steps=2, warmup=0, scored=0, overrides={"gradient_accumulation_steps": 2})
    model, rows = make_model(tmp_path, "l"), tmp_path / "rows"
    cell.write(rows, 2)
    kept, least = (
        replace(cell, overrides={**cell.overrides, "recompute": asked}).resolve(model).plan().total_bytes
        for asked in ("off", "12 blocks")
    )
    room, measured, losses = (kept + least) // 2, {}, {}
    for asked in ("off", "auto"):
        options = {**cell.options(model, rows), "recompute": asked, "logging_steps": 1, "output_dir": tmp_path / asked}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        finished = subprocess.run(
            [sys.executable, "-c", TIGHT, str(room), "train", "lora", *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        record = json.loads((tmp_path / asked / "result.json").read_text())
        measured[asked] = record["measured"]["phases"]["train"]["host_bytes"]
        losses[asked] = [point["loss"] for point in record["loss_curve"]]
        amount = read_recompute(record["recompute"])
        assert ("recompute: " in finished.stderr) == bool(amount) == (asked == "auto")
    assert NOTHING != amount != Recompute(blocks=12)
    assert f"recompute: {amount.of(12)}, for " in finished.stderr
    assert measured["auto"] <= room < measured["off"]
    assert losses["auto"] == losses["off"]


def test_a_run_that_fits_keeps_all(tmp_path, jsonl):
    result = get_recipe("lora", dataset=str(jsonl), max_steps=1, **FAST).train(tmp_path / "run")
    assert result.record["recompute"] == "off"


def test_how_much_is_computed_again_may_change_when_a_run_goes_on(tmp_path):
    first, later = (get_recipe("lora", recompute=asked) for asked in ("auto", "2 blocks"))
    (tmp_path / "recipe.yaml").write_text(first.to_yaml())
    require_same(tmp_path / "recipe.yaml", later.resolve(), _may_change)

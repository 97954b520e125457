"""A base in 8-bit floats: what is rounded and by how much, what is kept for the way back, and the path of a run."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from conftest import FAST
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

import benchmarks.float8 as benchmark_of_float8
import benchmarks.report.float8 as report_of_float8
from hf_peft_recipes import RunResult, UserError, certificate, float8, get_recipe, quantizers
from hf_peft_recipes.adapters import add_adapter
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.finite.culprit import broken_weight
from hf_peft_recipes.models import load_base
from hf_peft_recipes.speed import gated_mlp, lora_linear
from hf_peft_recipes.speed.lora_layers import why_not_plain

SECTION = {"quant_method": "torchao", "quant_type": "Float8WeightOnlyConfig"}
LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
IDS = torch.randint(5, 200, (2, 24), generator=torch.Generator().manual_seed(1))


def load(quantization=SECTION, dtype="float32"):
    return load_base(AutoModelForCausalLM, {"name_or_path": str(MODEL_DIR), "dtype": dtype}, quantization)


def with_adapter(model):
    """Return the model with LoRA whose B is not zero."""
    wrapped = add_adapter(model, LORA, "CAUSAL_LM").train()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return wrapped


def step(model, autocast=False):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def layers(model):
    return {name: one for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}


@pytest.fixture(scope="module")
def base():
    return load()


def test_every_layer_but_the_head_is_rounded_a_row_at_a_time(base):
    found, expected = layers(base), layers(load(None))
    assert found.keys() == expected.keys()
    for name, layer in found.items():
        before = expected[name].weight
        if name == "lm_head":
            assert type(layer.weight) is torch.nn.Parameter and torch.equal(layer.weight, before)
            continue
        assert layer.weight.qdata.dtype == torch.float8_e4m3fn
        assert layer.weight.scale.shape == (before.shape[0], 1)
        # Three bits behind the leading one: at most half of the last one of them is lost, 1/16; below 2^-6 of 448 steps
        # are even.
        off = (float8.whole(layer.weight, torch.float32) - before).abs()
        least = before.abs().amax(1, keepdim=True) * 2**-10 / 448
        assert bool((off <= (before.abs() / 16).maximum(least) * (1 + 1e-6)).all()), name
        assert bool(off.any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_made_whole_as_torchao_makes_it(base, dtype):
    for layer in layers(base).values():
        if float8.is_float8(layer.weight):
            assert torch.equal(float8.whole(layer.weight, dtype), layer.weight.dequantize(dtype))


@pytest.mark.parametrize("granularity", ["PerRow", "PerTensor", "PerGroup"])
def test_a_weight_that_others_have_rounded_is_made_whole_too(granularity):
    from torchao.quantization import Float8WeightOnlyConfig, quantize_
    from torchao.quantization import granularity as kinds

    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 8)
    options = (32,) if granularity == "PerGroup" else ()
    quantize_(layer, Float8WeightOnlyConfig(granularity=getattr(kinds, granularity)(*options)))
    assert torch.equal(float8.whole(layer.weight, torch.float32), layer.weight.dequantize(torch.float32))


def test_the_product_has_the_gradient_of_a_whole_layer(base):
    layer = base.model.layers[0].mlp.down_proj
    x = torch.randn(2, 3, layer.in_features, requires_grad=True, generator=torch.Generator().manual_seed(0))
    whole = float8.whole(layer.weight, torch.float32)
    wanted = torch.randn(2, 3, layer.out_features)
    (expected,) = torch.autograd.grad(torch.nn.functional.linear(x, whole), x, wanted)
    out = layer(x)
    torch.testing.assert_close(out, torch.nn.functional.linear(x, whole))
    torch.testing.assert_close(torch.autograd.grad(out, x, wanted)[0], expected)
    # What training sees is what whoever loads the base sees.
    plain = copy.deepcopy(layer)
    del plain.forward
    torch.testing.assert_close(out, plain(x))


def test_the_bias_of_a_layer_counts_and_can_be_trained():
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 8)
    quantize_(layer, Float8WeightOnlyConfig())
    float8.mend(layer)
    x = torch.randn(4, 16, requires_grad=True)
    out = layer(x)
    torch.testing.assert_close(out, x @ float8.whole(layer.weight, x.dtype).T + layer.bias)
    out.sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((8,), 4.0))


def saved_bytes(model):
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        model(IDS, labels=IDS, use_cache=False)
    return sum(storages.values())


def test_no_weight_is_kept_whole_for_the_way_back(base):
    mended = with_adapter(copy.deepcopy(base))
    bare = copy.deepcopy(mended)
    for layer in layers(bare).values():
        vars(layer).pop("forward", None)
    linear = [layer for layer in layers(base).values() if float8.is_float8(layer.weight)]
    whole_bytes = 4 * sum(layer.weight.numel() for layer in linear)
    # Where this fails, torchao keeps nothing any more, and `float8.mend` can go.
    assert saved_bytes(bare) - saved_bytes(mended) > 0.95 * whole_bytes
    (loss, gradients), (bare_loss, bare_gradients) = step(mended), step(bare)
    torch.testing.assert_close(loss, bare_loss)
    assert gradients.keys() == bare_gradients.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, bare_gradients[name])


def test_the_faster_paths_know_it_and_agree_with_peft(base):
    plain = with_adapter(copy.deepcopy(base))
    fast = copy.deepcopy(plain)
    assert lora_linear.install(fast) and gated_mlp.install(fast)
    assert sum("forward" in vars(one) for one in fast.modules() if hasattr(one, "lora_A")) == 28
    for autocast, tolerance in ((False, 1e-5), (True, 0.03)):
        (loss, gradients), (fast_loss, fast_gradients) = step(plain, autocast), step(fast, autocast)
        torch.testing.assert_close(fast_loss, loss, rtol=tolerance, atol=0)
        joined, fast_joined = (
            torch.cat([one.flatten() for one in all_.values()]) for all_ in (gradients, fast_gradients)
        )
        assert gradients.keys() == fast_gradients.keys()
        assert torch.dist(fast_joined, joined) < tolerance * joined.norm()
    assert saved_bytes(fast) < saved_bytes(plain)


def test_a_layer_that_rounds_its_input_too_is_left_to_peft(base):
    plain = with_adapter(copy.deepcopy(base))
    layer = plain.base_model.model.model.layers[0].self_attn.q_proj
    assert why_not_plain(layer) is None
    layer.base_layer.weight.act_quant_kwargs = object()
    assert why_not_plain(layer) == "another quantisation of torchao's"


def test_a_weight_that_is_not_finite_is_named(base):
    model = copy.deepcopy(base)
    assert broken_weight(model) is None
    model.model.layers[1].mlp.up_proj.weight.qdata[3, 5] = float("nan")
    assert broken_weight(model) == "the weight model.layers.1.mlp.up_proj.weight"


def test_made_whole_again_it_is_a_plain_model(base):
    model = copy.deepcopy(base)
    expected = model(IDS).logits
    whole = quantizers.dequantize(model)
    assert not any(float8.is_float8(one) for one in whole.parameters())
    assert not any("forward" in vars(layer) for layer in layers(whole).values())
    assert not hasattr(whole.config, "quantization_config") and not whole.is_quantized
    torch.testing.assert_close(whole(IDS).logits, expected)


@pytest.mark.slow
def test_a_run_is_certified_resumed_and_merged(tmp_path):
    options = {**FAST, "certify": "auto", "max_steps": 4, "save_strategy": "steps", "save_steps": 0.5}
    recipe = get_recipe("lora_fp8", learning_rate=3e-3, **options)
    result = recipe.train(tmp_path / "out", progress=False)
    assert result.record["certificate"]["status"] == "passed"
    statement = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert statement["load"]["quantization"] == SECTION and statement["adapter_effect"] > 0

    # The same weights come of going on with the checkpoint in the middle.
    folder = tmp_path / "resumed"
    folder.mkdir()
    (tmp_path / "out" / "checkpoint-2").rename(folder / "checkpoint-2")
    recipe.train(folder, resume=True, progress=False)
    weights = [(one / "adapter_model.safetensors").read_bytes() for one in (tmp_path / "out", folder)]
    assert weights[0] == weights[1]

    result = RunResult.read(tmp_path / "out")
    assert result.evaluate()["after"] == pytest.approx(result.record["metrics"]["after"], rel=1e-3)
    merged = result.merge(tmp_path / "merged").record
    moved = {name: one["divergence"]["mean"] for name, one in merged["variants"].items()}
    assert moved.keys() == {"bf16", "requantized", "dequantized"}
    assert merged["into"] == min(moved, key=moved.get)


@pytest.mark.slow
def test_a_merge_into_8_bit_floats_is_loaded_by_plain_transformers_and_trained_further(tmp_path):
    get_recipe("lora_fp8", max_steps=2, **FAST).train(tmp_path / "out", progress=False)
    RunResult.read(tmp_path / "out").merge(tmp_path / "merged", into="requantized")
    assert certificate.certify(tmp_path / "merged")["status"] == "passed"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="bfloat16")
    assert float8.is_float8(loaded.model.layers[0].self_attn.q_proj.weight)
    stored = sum(path.stat().st_size for path in (tmp_path / "merged").glob("*.safetensors"))
    told = json.loads((tmp_path / "merged" / "merge.json").read_text())["variants"]["requantized"]
    assert told["size_bytes"] == pytest.approx(stored, rel=0.05)
    further = get_recipe("lora", model=str(tmp_path / "merged"), max_steps=2, **FAST)
    result = further.train(tmp_path / "further", progress=False)
    assert result.status == "done"
    # Its files are planned as what they are.
    plan = further.plan()
    assert plan.parts["weights_quantized"] == get_recipe("lora_fp8").plan().parts["weights_quantized"]


def test_without_the_package_nothing_is_begun(monkeypatch, tmp_path):
    monkeypatch.setattr(quantizers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"torchao comes from a package .* pip install 'hf-peft-recipes\[fp8\]'"):
        get_recipe("lora_fp8", max_steps=1, **FAST).train(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_statement_of_anybody_s_names_no_other_class():
    with pytest.raises(UserError, match=r"quant_type 'Int4WeightOnlyConfig' is not known here"):
        quantizers.make_config({"quant_method": "torchao", "quant_type": "Int4WeightOnlyConfig"})


def test_heads_that_are_drawn_stay_whole():
    recipe = get_recipe("lora_fp8+classify")
    section = quantizers.keeping_whole(recipe.resolved.section("quantization"), ["score"])
    assert section == {**SECTION, "modules_to_not_convert": ["score"]}
    assert quantizers.make_config(section).modules_to_not_convert == ["score"]


def test_the_benchmark_trains_both_methods_alike():
    made = list(benchmark_of_float8.runs(2))
    for first, second in zip(made[::2], made[1::2], strict=True):
        assert (first.method, second.method) == benchmark_of_float8.METHODS
        assert replace(first, method="") == replace(second, method="")
    assert len({run.name for run in made}) == len(made) == 8


@pytest.mark.slow
def test_the_benchmark_trains_a_run_once(tmp_path, monkeypatch):
    embedded = benchmark_of_float8.EMBEDDED
    few = {"evaluation.max_rows": 8, "gradient_accumulation_steps": 1}
    asked = [benchmark_of_float8.Run("lora_fp8", 1, embedded, embedded, 2, few)]
    monkeypatch.setattr(benchmark_of_float8, "runs", lambda seeds: asked)
    words = ["--out", str(tmp_path / "float8.jsonl"), "--busy"]
    (line,) = benchmark_of_float8.benchmark(words)
    assert [step for step, _ in line["losses"]] == [1, 2] and line["status"] == "done"
    assert line["metrics"]["before"]["loss"] != line["metrics"]["after"]["loss"]
    assert {"hardware", "versions", "date", "commit", "code"} <= set(line) and "torchao" in line["versions"]
    monkeypatch.setattr(benchmark_of_float8, "measure", None)
    assert benchmark_of_float8.benchmark(words) == [line]


def line_of(method, seed, losses, after, accuracy=None):
    metrics = {"loss": after} | ({} if accuracy is None else {"accuracy": accuracy})
    return {
        "cell": {"method": method, "seed": seed, "model": "m", "dataset": "d", "steps": 2},
        "status": "done",
        "metrics": {"before": {"loss": 2.0 if method == "lora" else 2.125}, "after": metrics},
        "losses": [[step, loss] for step, loss in enumerate(losses, 1)],
    }


def test_the_report_holds_pairs_of_a_seed_against_each_other():
    lines = [
        line_of("lora", 1, [2.0, 1.0], 1.0, 0.5), line_of("lora_fp8", 1, [2.25, 1.0], 1.5, 0.75),
        line_of("lora_fp8", 2, [2.0, 1.0], 1.0, 0.5), line_of("lora", 2, [2.0, 1.5], 1.25, 0.5),
        line_of("lora", 3, [1.0, 1.0], 1.0),
    ]  # fmt: skip
    pairs = report_of_float8.paired(lines)
    assert [pair.whole["cell"]["seed"] for pair in pairs] == [1, 2]
    assert [pair.moved("after") for pair in pairs] == [0.5, -0.25]
    assert [pair.curve() for pair in pairs] == [[(1, 0.25), (2, 0.0)], [(1, 0.0), (2, -0.5)]]
    told = report_of_float8.sentence(pairs)
    assert "m on d, 2 steps, 2 seeds: rounding moves the base's held-out loss by +0.1250 nats" in told
    assert "-0.2500 to +0.5000, where seeds lie 0.2500 apart" in told
    assert "accuracy 50.0 % on the whole base, 62.5 % on the rounded one" in told

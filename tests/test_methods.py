"""Methods that need more than a configuration: their steps are taken, and what they save is what they trained."""

import json
import math

import pytest
import torch
from conftest import FAST
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file

from hf_peft_recipes import UserError, certificate, get_recipe
from hf_peft_recipes.adapters import add_adapter
from hf_peft_recipes.api import resolve_recipe
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.methods import settings
from hf_peft_recipes.methods.adalora import FEWEST, Ranks
from hf_peft_recipes.methods.held_start import lora_layers
from hf_peft_recipes.models import load_base
from hf_peft_recipes.preflight import OPTIMIZER_PACKAGES

SMALL = {
    **FAST, "evaluation.max_rows": 0, "data.validation_rows": 2, "max_length": 128, "gradient_accumulation_steps": 1,
}  # fmt: skip
LAYERS = 28
"""Linear layers of the embedded model."""


def recipe(name, rows, steps=4, **overrides):
    return get_recipe(name, dataset=rows, max_steps=steps, **{**SMALL, "warmup_steps": 0, **overrides})


def built(name, rows, folder, **overrides):
    """Return the trainer of a recipe, before any step."""
    return recipe(name, rows, **overrides).build_trainer(folder)


def batch_of(trainer):
    return next(iter(trainer.get_train_dataloader()))


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], use_cache=False).logits.float()


@pytest.fixture(scope="module")
def base():
    """The embedded model as its files have it."""
    from transformers import AutoModelForCausalLM

    return load_base(AutoModelForCausalLM, {"dtype": "float32"}, None).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("eva", {}),
        ("lora_ga", {}),
        ("trainable_tokens", {}),
        ("p_tuning", {}),
        ("ln_tuning", {"dtype": "bfloat16", "load_in_4bit": True}),
    ],
)
def test_what_is_saved_is_what_was_trained(name, overrides, rows, tmp_path):
    folder = tmp_path / "out"
    recipe(name, rows, **overrides).train(folder, progress=False)
    verdict = certificate.certify(folder)
    assert verdict["status"] == "passed", verdict
    assert verdict["figures"]["adapter_effect"] > 0
    # Whoever loads it begins nothing anew.
    assert json.loads((folder / "adapter_config.json").read_text()).get("init_lora_weights", True) is True


@pytest.mark.slow
def test_adalora_cuts_to_its_budget_and_goes_on_where_it_stopped(rows, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 0.5}
    adalora = recipe("adalora", rows, steps=12, **saves)
    adalora.train(tmp_path / "whole", progress=False)
    config = json.loads((tmp_path / "whole" / "adapter_config.json").read_text())
    ranks = {name: sum(kept) for name, kept in config["rank_pattern"].items()}
    assert len(ranks) == LAYERS
    assert sum(ranks.values()) == config["target_r"] * LAYERS
    assert len(set(ranks.values())) > 1, "ranks differ from layer to layer"
    tensors = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    found = {name: len(tensor) for name, tensor in tensors.items() if name.endswith("lora_E")}
    assert {name.replace("base_model.model.", "", 1): rank for name, rank in found.items()} == ranks
    assert (config["total_step"], config["tinit"]) == (12, FEWEST)
    assert certificate.certify(tmp_path / "whole")["status"] == "passed"

    # The checkpoint was written while ranks were being cut.
    folder = tmp_path / "resumed"
    folder.mkdir()
    (tmp_path / "whole" / "checkpoint-6").rename(folder / "checkpoint-6")
    adalora.train(folder, resume=True, progress=False)
    again = load_file(folder / "adapter_model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)

    # An adapter that is gone on with keeps its ranks, those of none included.
    recipe("adalora", rows, adapter=str(tmp_path / "whole")).train(tmp_path / "further", progress=False)
    assert (
        json.loads((tmp_path / "further" / "adapter_config.json").read_text())["rank_pattern"] == config["rank_pattern"]
    )
    assert certificate.certify(tmp_path / "further")["status"] == "passed"


def test_the_penalty_of_adalora_is_the_one_that_peft_adds_to_its_own_loss(base):
    import copy

    section = {"peft_type": "ADALORA", "target_modules": ["q_proj"], "init_r": 4, "target_r": 2, "orth_reg_weight": 0.3}
    model = add_adapter(copy.deepcopy(base), settings(section), "CAUSAL_LM")
    ids = torch.arange(5, 25)[None]
    matrix = next(tensor for name, tensor in model.named_parameters() if "lora_A" in name)

    def gradient(weight):
        model.peft_config["default"].orth_reg_weight = weight
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return matrix.grad.clone()

    expected = gradient(0.3)
    gradient(0.0)
    model.peft_config["default"].orth_reg_weight = 0.3
    ranks = Ranks(None, None, True)
    ranks.tuner = model.base_model
    ranks.on_pre_optimizer_step(None, None, None)
    assert torch.allclose(matrix.grad, expected, atol=1e-7)
    assert not torch.allclose(gradient(0.0), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["lora_ga", "corda"])
def test_a_start_other_than_zero_leaves_the_base_and_what_the_model_says(name, rows, tmp_path, base):
    trainer = built(name, rows, tmp_path, use_cpu=True, bf16=False, weight_decay=0.1, learning_rate=1e-2)
    model, batch = trainer.model, batch_of(trainer)
    for wanted, found in zip(base.model.layers, model.get_base_model().model.layers, strict=True):
        assert torch.equal(wanted.self_attn.q_proj.weight, found.self_attn.q_proj.base_layer.weight)
    assert torch.allclose(logits(model.eval(), batch), logits(base, batch), atol=1e-3)
    starts = {path: (a.clone(), b.clone()) for path, a, b in halves(model)}
    assert all(float((b @ a).norm()) > 0 for a, b in starts.values())
    trainer.args.max_steps = 2
    trainer.train()
    for path, a, b in halves(model):
        assert torch.equal(a, starts[path][0]) and torch.equal(b, starts[path][1]), "the start is held"
    assert not torch.allclose(logits(model.eval(), batch), logits(base, batch), atol=1e-3)


def halves(model):
    """Yield the held halves of A and B of every layer."""
    for path, layer in lora_layers(model):
        rank = layer.r["default"] // 2
        yield path, layer.lora_A["default"].weight.data[rank:], layer.lora_B["default"].weight.data[:, rank:]


def test_lora_ga_begins_along_the_gradient(rows, tmp_path):
    """The rows of A span what the gradients of all rows, taken here by hand, have as their first directions."""
    trainer = built("lora_ga", rows, tmp_path, bf16=False, r=2)
    model = trainer.model
    layer = dict(lora_layers(model))["base_model.model.model.layers.1.self_attn.q_proj"]
    weight = layer.get_base_layer().weight
    weight.requires_grad_(True)
    with model.disable_adapter():
        for row in trainer.train_dataset:
            # Packed rows are taken apart again.
            start = 0
            for length in row["seq_lengths"]:
                ids, labels = (torch.tensor([row[name][start : start + length]]) for name in ("input_ids", "labels"))
                model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
                start += length
    directions = torch.linalg.svd(weight.grad).Vh[:2]
    a = layer.lora_A["default"].weight.data[:2]
    assert torch.linalg.svdvals(directions @ a.T).min() > 0.99


def test_eva_takes_the_inputs_directions_and_the_same_ones_again(rows, tmp_path):
    first, again = (built("eva", rows, tmp_path / str(number)).model for number in range(2))
    layers = list(lora_layers(first))
    ranks = [layer.r["default"] for _, layer in layers]
    assert len(set(ranks)) > 1 and sum(ranks) == 16 * LAYERS
    for (path, layer), (_, other) in zip(layers, lora_layers(again), strict=True):
        a = layer.lora_A["default"].weight
        assert torch.allclose(a @ a.T, torch.eye(len(a)), atol=2e-2), path
        assert torch.equal(a, other.lora_A["default"].weight)
        assert not bool(layer.lora_B["default"].weight.any())


def test_loftq_makes_up_for_what_quantising_lost(rows, tmp_path, base):
    from peft.utils.integrations import dequantize_module_weight

    model = built("loftq", rows, tmp_path).model
    whole = dict(base.named_parameters())
    for path, layer in lora_layers(model):
        weight = whole[f"{path.removeprefix('base_model.model.')}.weight"]
        stored = dequantize_module_weight(layer.get_base_layer()).float()
        begun = stored + layer.get_delta_weight("default").float()
        assert float((weight - begun).norm()) < 0.9 * float((weight - stored).norm()), path


@pytest.mark.parametrize(("name", "optimizer"), [("loraplus", "adamw_torch_fused"), ("loraplus+dpo", "adafactor")])
def test_b_learns_at_a_multiple_of_as_rate_whatever_the_objective_and_the_optimizer(name, optimizer, rows, tmp_path):
    pairs = [{"prompt": row["question"], "chosen": row["answer"], "rejected": "No."} for row in rows]
    trainer = built(name, pairs if "dpo" in name else rows, tmp_path, optim=optimizer, learning_rate=1e-4)
    made = trainer.create_optimizer()
    assert type(made).__name__.lower() == {"adamw_torch_fused": "adamw"}.get(optimizer, optimizer)
    names = {id(tensor): name for name, tensor in trainer.model.named_parameters()}
    rates = {
        group["lr"]: {names[id(one)].split(".")[-3] for one in group["params"]}
        for group in made.param_groups
        if group["params"]
    }
    assert rates[1e-4] == {"lora_A"}
    assert next(held for rate, held in rates.items() if math.isclose(rate, 1.6e-3)) == {"lora_B"}
    trained = sum(tensor.requires_grad for tensor in trainer.model.parameters())
    assert sum(len(group["params"]) for group in made.param_groups) == trained


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("C3A", {"block_size": 64}),
        ("SHIRA", {}),
        ("GRALORA", {}),
        ("HRA", {}),
    ],
)
def test_a_type_that_no_recipe_has_works_by_its_name(name, overrides, rows, tmp_path):
    assert name in PEFT_TYPE_TO_CONFIG_MAPPING
    flags = {"peft_type": name, "dtype": "float32", **overrides}
    result = recipe("lora", rows, 2, **flags).train(tmp_path / "out", progress=False)
    assert result.status == "done"
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("loha", "--quantization.load_in_4bit", "true"), r"peft_type LOHA cannot train on a base in 4 bits"),
        (("pissa", "--load_in_8bit", "true"), r"init_lora_weights pissa cannot train on a base in 8 bits"),
        (("pissa", "--load_in_4bit", "true", "--init_lora_weights", "pissa_niter_4"), r"pissa_niter_4 cannot train"),
        (("qlora", "--adapter.peft_type", "hra"), r"'qlora' trains on 4 bits"),
        (("lora_fp8", "--init_lora_weights", "olora"), r"olora cannot train on a base in 8-bit floats"),
        (("lora_fp8", "--peft_type", "HRA"), r"peft_type HRA cannot train on a base in 8-bit floats"),
        (("adalora", "--total_step", "100"), "the run knows how many steps it has"),
    ],
)
def test_what_cannot_train_is_refused_when_the_recipe_is_resolved(words, told):
    with pytest.raises(UserError, match=told) as caught:
        resolve_recipe(words[0], parse_flags(words[1:]), "H100")
    assert "\n" not in str(caught.value)


def test_a_type_that_the_table_does_not_know_is_not_refused():
    resolved = resolve_recipe("qlora", parse_flags(["--peft_type", "SHIRA", "--random_seed", "7"]), "H100").resolved
    # Of LoRA's keys those stay that it has too.
    assert resolved.section("adapter") == {
        "peft_type": "SHIRA",
        "r": 16,
        "target_modules": "all-linear",
        "random_seed": 7,
    }
    with pytest.raises(UserError, match="unknown option --lora_alpha"):
        resolve_recipe("qlora", parse_flags(["--peft_type", "SHIRA", "--lora_alpha", "7"]), "H100")


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("eva", {"data.streaming": True}, "looks at the training rows first"),
        ("adalora", {"target_r": 24}, r"target_r = 24 leaves nothing to take from adapter\.init_r = 24"),
        ("adalora+dpo", {}, "orpo, cpo, simpo and grpo need none"),
        ("loftq", {"quantization": None}, "loftq makes up for a base in 4 bits"),
        ("loraplus", {"loraplus_lr_ratio": 0.5}, "1 or more"),
        ("ia3", {"loraplus_lr_ratio": 4}, "IA3 has no matrices A and B"),
        ("lora_ga", {"use_dora": True}, "DoRA's magnitudes"),
        ("lora_ga", {"r": 200}, "too large for"),
    ],
)
def test_what_contradicts_a_method_is_one_line_and_leaves_nothing(name, overrides, told, rows, tmp_path):
    with pytest.raises(UserError, match=told) as caught:
        recipe(name, None if "dpo" in name else rows, **overrides).train(tmp_path / "out", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_ranks_that_no_step_is_left_to_take_are_told(rows, tmp_path):
    with pytest.raises(UserError, match=r"adapter\.tinit = 3 and adapter\.tfinal = 2: none of the run's 4 steps"):
        recipe("adalora", rows, 4, tinit=3, tfinal=2).train(tmp_path / "out", progress=False)


@pytest.mark.parametrize("extra", OPTIMIZER_PACKAGES)
def test_an_optimizer_that_is_not_installed_is_told_with_its_command(extra, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMIZER_PACKAGES, extra, "no_such_package")
    with pytest.raises(UserError, match=rf"pip install 'hf-peft-recipes\[{extra}\]'"):
        recipe(extra, rows).train(tmp_path / "out", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("extra", OPTIMIZER_PACKAGES)
def test_a_smaller_optimizer_goes_on_where_it_stopped(extra, rows, tmp_path):
    pytest.importorskip(OPTIMIZER_PACKAGES[extra])
    full = recipe(extra, rows, 2, save_strategy="steps", save_steps=0.5)
    full.train(tmp_path / "whole", progress=False)
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "checkpoint-1").rename(tmp_path / "resumed" / "checkpoint-1")
    full.train(tmp_path / "resumed", resume=True, progress=False)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_going_on_keeps_the_ratio_and_nothing_else(rows, tmp_path):
    recipe("lora", rows, 2).train(tmp_path / "first", progress=False)
    trainer = built("loraplus", rows, tmp_path / "second", adapter=str(tmp_path / "first"), learning_rate=1e-4)
    assert max(group["lr"] for group in trainer.create_optimizer().param_groups) == pytest.approx(1.6e-3)


def test_preference_optimisation_compares_with_an_untouched_base(rows, tmp_path, base):
    """PiSSA's copy of itself would take its part out of the base once more."""
    pairs = [{"prompt": row["question"], "chosen": row["answer"], "rejected": "No."} for row in rows]
    model = built("pissa+dpo", pairs, tmp_path, bf16=False).model.eval()
    ids = {"input_ids": torch.arange(5, 25)[None]}
    assert torch.allclose(logits(model, ids), logits(base, ids), atol=1e-3)
    assert model.peft_config["default"].init_lora_weights == "pissa"

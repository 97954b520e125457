"""The planner's two ways must agree, and its counts must be exact."""

import json
from dataclasses import replace

import pytest
from plan_samples import LLAMA_8B, OWN, SMALL, job_of, small_config

from hf_peft_recipes import get_recipe
from hf_peft_recipes.device import named_device
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.plan import AGREEMENT
from hf_peft_recipes.plan.optimizers import optimizer_bytes
from hf_peft_recipes.plan.shapes import ARCHITECTURES, four_bit_bytes, read_shape
from hf_peft_recipes.plan.step import walk_step, walk_whole_step
from hf_peft_recipes.plan.weights import Model

FLOAT8 = {"quant_method": "torchao", "quant_type": "Float8WeightOnlyConfig"}


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("recipe", ["lora", "qlora", "lora_fp8", "full"])
def test_the_two_ways_agree(kind, recipe):
    from hf_peft_recipes.plan.trace import trace_step

    config = small_config(kind)
    # A CPU with bfloat16, whatever this machine's has: its precision is emulated on the meta device anyway.
    cpu = replace(named_device("cpu"), bf16=True)
    for device, checkpointing in ((cpu, False), (cpu, True), (named_device("H100"), True)):
        job = job_of(recipe, config, device, activation_checkpointing=checkpointing)
        walked, traced = walk_step(job, read_shape(config, "x")), trace_step(job)
        weights = sum(walked.parts[part] for part in ("weights", "weights_quantized", "adapters"))
        # Rotary tables are buffers of a few bytes.
        assert abs(weights - traced.weight_bytes) < 1024
        assert walked.peak_bytes == pytest.approx(traced.peak_bytes, rel=AGREEMENT)
        # What the step adds has to agree by itself, not hidden behind the weights.
        moving = walked.peak_bytes - weights, traced.peak_bytes - traced.weight_bytes
        assert moving[0] == pytest.approx(moving[1], rel=AGREEMENT), (device.name, checkpointing)


@pytest.mark.parametrize(
    "overrides",
    [
        {"speed": "off"},
        {"bf16": False, "dtype": "float32"},
        {"bf16": False, "dtype": "bfloat16"},
        {"dtype": "float32"},
        {"per_device_train_batch_size": 4, "packing": False},
        {"gradient_accumulation_steps": 1},
        {"target_modules": ["q_proj", "v_proj"], "r": 64},
    ],
)
@pytest.mark.parametrize("recipe", ["lora", "lora_fp8", "full"])
def test_the_two_ways_agree_under_other_settings(overrides, recipe):
    from hf_peft_recipes.plan.trace import trace_step

    if recipe == "full":
        overrides = {key: value for key, value in overrides.items() if key not in ("target_modules", "r")}
    config = small_config("llama")
    job = job_of(recipe, config, replace(named_device("cpu"), bf16=True), **overrides)
    walked, traced = walk_step(job, read_shape(config, "x")), trace_step(job)
    assert walked.peak_bytes == pytest.approx(traced.peak_bytes, rel=AGREEMENT)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"speed": "off"},
        {"bf16": False},
        {"bf16": False, "speed": "off"},
        {"bf16": False, "lora_dropout": 0.1},
        {"bf16": False, "recompute": "1 block + 1 feed-forward"},
        {"target_modules": ["q_proj", "v_proj"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["cpu", "H100"])
def test_the_two_ways_agree_on_what_four_bits_are_multiplied_in(kind, stored, computed, overrides):
    from hf_peft_recipes.plan.trace import trace_step

    config, device = small_config("llama"), replace(named_device(kind), bf16=True)
    asked = {"quantization.bnb_4bit_compute_dtype": computed, "dtype": stored, **overrides}
    job = job_of("qlora", config, device, **asked)
    assert job.own_lora == ("speed" not in overrides and ("bf16" not in overrides or computed == "float32"))
    assert job.layer_bytes == (4 if "bf16" in overrides and computed == "float32" else 2)
    walked, traced = walk_step(job, read_shape(config, "x")), trace_step(job)
    weights = sum(walked.parts[part] for part in ("weights", "weights_quantized", "adapters"))
    moving = walked.peak_bytes - weights, traced.peak_bytes - traced.weight_bytes
    assert moving[0] == pytest.approx(moving[1], rel=AGREEMENT)


def test_what_four_bits_are_multiplied_in_is_read_where_it_is_said():
    told = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    for said, found in (({}, 4), ({"bnb_4bit_compute_dtype": "bfloat16"}, 2)):
        config = {**small_config("llama"), "quantization_config": {**told, **said}}
        assert job_of("lora", config, named_device("cpu"), bf16=False).layer_bytes == found
    # bitsandbytes' own choice, where nothing is said.
    assert job_of("lora", small_config("llama"), named_device("cpu"), load_in_4bit=True, bf16=False).layer_bytes == 4


@pytest.mark.parametrize("length", [1024, 32768])
def test_the_two_ways_agree_on_documents_however_long(length):
    """One head of a document of 32,768 tokens has more scores than blocks hold together."""
    from hf_peft_recipes.plan.trace import trace_step

    sizes = {
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "vocab_size": 64,
    }
    config = small_config("llama") | sizes | {"head_dim": 16, "max_position_embeddings": 32768}
    job = job_of("lora", config, replace(named_device("cpu"), bf16=True), max_length=length)
    assert job.document_kernel == "by_block"
    walked, traced = walk_step(job, read_shape(config, "x")), trace_step(job)
    assert walked.peak_bytes == pytest.approx(traced.peak_bytes, rel=AGREEMENT)


@pytest.mark.parametrize(
    "overrides",
    [
        {"lora_dropout": 0.1},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["lm_head", "embed_tokens"], "lora_dropout": 0.1},
        {"use_dora": True},
        {"load_in_8bit": True},
        {"load_in_8bit": True, "lora_dropout": 0.1, "modules_to_save": ["embed_tokens"]},
        {**FLOAT8, "lora_dropout": 0.1, "modules_to_save": ["lm_head"]},
    ],
)
@pytest.mark.parametrize("kind", ["cpu", "H100"])
def test_the_two_ways_agree_for_other_methods(overrides, kind):
    from hf_peft_recipes.plan.trace import trace_step

    config, device = small_config("llama"), replace(named_device(kind), bf16=True)
    for checkpointing in (False, True):
        job = job_of("lora", config, device, activation_checkpointing=checkpointing, **overrides)
        assert not job.closed_form_misses()
        walked, traced = walk_step(job, read_shape(config, "x")), trace_step(job)
        weights = sum(walked.parts[part] for part in ("weights", "weights_quantized", "adapters"))
        assert abs(weights - traced.weight_bytes) < 1024
        assert sum(walked.trained) == traced.trainable
        moving = walked.peak_bytes - weights, traced.peak_bytes - traced.weight_bytes
        assert moving[0] == pytest.approx(moving[1], rel=AGREEMENT), checkpointing


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"speed": "off"},
        {"bf16": False, "dtype": "float32"},
        {"max_length": 1024, "activation_checkpointing": True},
        {"per_device_train_batch_size": 4, "packing": False, "gradient_accumulation_steps": 1},
        {"torch_compile": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("recipe", ["lora", "qlora"])
@pytest.mark.parametrize("gpu", ["H100", "T4"])
def test_the_two_ways_agree_on_the_paths_of_a_gpu(overrides, recipe, gpu):
    from hf_peft_recipes.plan.trace import trace_step

    config = small_config("llama")
    job = job_of(recipe, config, named_device(gpu), **overrides)
    walked, traced = walk_step(job, read_shape(config, "x")), trace_step(job)
    weights = sum(walked.parts[part] for part in ("weights", "weights_quantized", "adapters"))
    moving = walked.peak_bytes - weights, traced.peak_bytes - traced.weight_bytes
    assert moving[0] == pytest.approx(moving[1], rel=AGREEMENT)


def test_a_plan_follows_the_table_of_paths():
    config = small_config("llama")

    def taken(gpu, **overrides):
        job = job_of("lora", config, named_device(gpu), **overrides)
        return job.own_lora, job.own_head, job.by_document, job.copies_documents, job.needs_mask

    assert taken("H100") == (True, True, True, False, False)
    assert taken("H100", bf16=False, dtype="float32") == taken("cpu") == (True, True, True, True, False)
    # Without products in bfloat16 training runs in float16, whose layers are PEFT's.
    assert taken("T4") == (False, True, True, True, False)
    assert taken("H100", torch_compile=True) == (False, True, False, False, True)
    assert taken("H100", speed="off") == (False, False, False, False, True)
    split = replace(job_of("lora", config, named_device("H100")), sharding="fsdp", devices=2)
    assert not (split.own_lora or split.own_head or split.by_document)
    assert taken("H100", attn_implementation="flash_attention_2") == (True, True, False, False, False)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_parameters_are_counted_exactly(kind):
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = small_config(kind)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SMALL, **OWN.get(kind, {})))
    shape = read_shape(config, "x")
    assert shape.parameters() == sum(parameter.numel() for parameter in model.parameters())
    theirs = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert {tensor.name: tensor.elements for tensor in shape.tensors()} == theirs


def test_a_quantised_base_with_adapter_is_counted_exactly():
    from transformers import AutoModelForCausalLM

    from hf_peft_recipes.adapters import add_adapter
    from hf_peft_recipes.models import load_base

    recipe = get_recipe("qlora", device="H100")
    loaded = load_base(AutoModelForCausalLM, recipe.resolved.section("model"), recipe.resolved.section("quantization"))
    model = add_adapter(loaded, recipe.resolved.section("adapter"), "CAUSAL_LM")
    found = {"weights": 0, "weights_quantized": 0, "adapters": 0}
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        part = "adapters" if parameter.requires_grad else "weights" if state is None else "weights_quantized"
        found[part] += parameter.numel() * parameter.element_size()
        if state is not None:
            tensors = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            found[part] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    config = json.loads((MODEL_DIR / "config.json").read_text())
    job = job_of("qlora", config, named_device("H100"))
    assert dict(Model(job, read_shape(config, "x")).bytes) == found


def test_a_base_in_8_bits_is_counted_exactly():
    from transformers import AutoModelForCausalLM

    from hf_peft_recipes.models import load_base

    recipe = get_recipe("lora", device="H100", load_in_8bit=True)
    model = load_base(AutoModelForCausalLM, recipe.resolved.section("model"), recipe.resolved.section("quantization"))
    found = {"weights": 0, "weights_quantized": 0}
    for parameter in model.parameters():
        rows = getattr(parameter, "SCB", None)
        found["weights" if rows is None else "weights_quantized"] += parameter.numel() * parameter.element_size()
        found["weights_quantized"] += 0 if rows is None else rows.numel() * rows.element_size()
    config = json.loads((MODEL_DIR / "config.json").read_text())
    counted = Model(job_of("lora", config, named_device("H100"), load_in_8bit=True), read_shape(config, "x")).bytes
    assert {part: counted[part] for part in found} == found


def test_a_base_in_8_bit_floats_is_counted_exactly():
    from transformers import AutoModelForCausalLM

    from hf_peft_recipes.float8 import is_float8, stored_parts
    from hf_peft_recipes.models import load_base

    recipe = get_recipe("lora_fp8", device="H100")
    model = load_base(AutoModelForCausalLM, recipe.resolved.section("model"), recipe.resolved.section("quantization"))
    found = {"weights": 0, "weights_quantized": 0}
    for parameter in model.parameters():
        part = "weights_quantized" if is_float8(parameter) else "weights"
        found[part] += sum(one.numel() * one.element_size() for one in stored_parts(parameter))
    config = json.loads((MODEL_DIR / "config.json").read_text())
    counted = Model(job_of("lora_fp8", config, named_device("H100")), read_shape(config, "x")).bytes
    assert {part: counted[part] for part in found} == found


def test_four_bits_cost_what_the_paper_says():
    elements = 4096 * 14336
    assert four_bit_bytes(elements, double_quantized=True) / elements == pytest.approx(0.5159, abs=1e-4)
    assert four_bit_bytes(elements, double_quantized=False) / elements == pytest.approx(0.5625, abs=1e-4)


def test_optimizer_states_are_what_torch_keeps():
    import torch

    weights = [torch.nn.Parameter(torch.zeros(100, 7)), torch.nn.Parameter(torch.zeros(13))]
    optimizer = torch.optim.AdamW(weights, fused=True)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = sum(
        tensor.numel() * tensor.element_size() for state in optimizer.state.values() for tensor in state.values()
    )
    assert optimizer_bytes("adamw_torch_fused", [700, 13], 4) == kept


@pytest.mark.parametrize("recipe", ["lora", "qlora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_few_layers_tell_of_many_exactly(recipe, checkpointing, accumulation):
    qwen2, mixtral = ({**small_config(kind), "num_hidden_layers": 9} for kind in ("qwen2", "mixtral"))
    cpu = replace(named_device("cpu"), bf16=True)
    cases = [(LLAMA_8B, named_device("H200"), {}), (qwen2, named_device("H200"), {}), (mixtral, cpu, {})]
    if recipe == "lora":
        cases += [(qwen2, cpu, {"use_dora": True}), (qwen2, cpu, {"load_in_8bit": True}), (qwen2, cpu, FLOAT8)]
    for config, device, others in cases:
        options = {"activation_checkpointing": checkpointing, "gradient_accumulation_steps": accumulation, **others}
        job, shape = job_of(recipe, config, device, **options), read_shape(config, "x")
        few, whole = walk_step(job, shape), walk_whole_step(job, shape)
        assert sorted(few.trained) == sorted(whole.trained)
        assert replace(few, trained=()) == replace(whole, trained=())


def test_an_adapter_in_some_layers_only_is_not_taken_to_be_in_all():
    options = {"target_modules": r".*layers\.[01]\..*q_proj"}
    job, shape = job_of("lora", LLAMA_8B, named_device("H200"), **options), read_shape(LLAMA_8B, "x")
    assert len(walk_step(job, shape).trained) == 4


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("amount", ["4 feed-forwards", "1 block + 2 feed-forwards", "3 blocks"])
def test_the_two_ways_agree_on_what_is_computed_again(kind, amount):
    agree_on_what_is_computed_again(kind, amount)


@pytest.mark.parametrize("kind", ["llama", "phi", "qwen3_moe"])
def test_the_two_ways_agree_on_what_is_offloaded(kind):
    agree_on_what_is_computed_again(kind, "4 blocks + offloading")


def agree_on_what_is_computed_again(kind, amount):
    from hf_peft_recipes.plan.trace import trace_step

    config = {**small_config(kind), "num_hidden_layers": 4}
    config.pop("layer_types", None)
    shape, kept = read_shape(config, "x"), []
    for device in (replace(named_device("cpu"), bf16=True), named_device("H100")):
        for recipe in ("lora", "qlora", "full"):
            job = job_of(recipe, config, device, recompute=amount)
            walked, traced = walk_step(job, shape), trace_step(job)
            weights = sum(walked.parts[part] for part in ("weights", "weights_quantized", "adapters"))
            moving = walked.peak_bytes - weights, traced.peak_bytes - traced.weight_bytes
            assert moving[0] == pytest.approx(moving[1], rel=AGREEMENT), (device.name, recipe)
            plain = walk_step(job_of(recipe, config, device, recompute="off"), shape)
            kept.append(walked.saved_bytes / plain.saved_bytes)
    assert max(kept) < 1


@pytest.mark.parametrize(
    "amount", ["8 feed-forwards", "4 blocks", "4 blocks + 2 feed-forwards", "5 blocks + 4 feed-forwards"]
)
@pytest.mark.parametrize("recipe", ["lora", "full"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_few_layers_of_each_stretch_tell_of_many_exactly(amount, recipe, accumulation):
    qwen2, mixtral = ({**small_config(kind), "num_hidden_layers": 9} for kind in ("qwen2", "mixtral"))
    cpu = replace(named_device("cpu"), bf16=True)
    for config, device in ((LLAMA_8B, named_device("H200")), (qwen2, cpu), (mixtral, cpu)):
        options = {"recompute": amount, "gradient_accumulation_steps": accumulation}
        job, shape = job_of(recipe, config, device, **options), read_shape(config, "x")
        few, whole = walk_step(job, shape), walk_whole_step(job, shape)
        assert sorted(few.trained) == sorted(whole.trained)
        assert replace(few, trained=()) == replace(whole, trained=())

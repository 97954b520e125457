"""What a base's files hold, by their headers: it is right where config.json is not, and no weight is read."""

import json
from pathlib import Path

import pytest
from plan_samples import small_config

from hf_peft_recipes import get_recipe
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a folder with a tiny model as transformers saves it, in several files."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("saved")
    config = CONFIG_MAPPING["llama"].from_dict({**small_config("llama"), "tie_word_embeddings": False})
    AutoModelForCausalLM.from_config(config, dtype="bfloat16").save_pretrained(folder, max_shard_size="1MB")
    assert len([*folder.glob("*.safetensors")]) > 1
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """Return a function that gives the saved model's headers a folder of their own, with changes to its config.json."""

    def make(**changes):
        for path in saved.iterdir():
            if path.suffix == ".safetensors":
                # The header alone: whatever read a weight would fail.
                length = int.from_bytes(path.read_bytes()[:8], "little")
                (tmp_path / path.name).write_bytes(path.read_bytes()[: 8 + length])
            elif path.name != "config.json":
                (tmp_path / path.name).write_bytes(path.read_bytes())
        config = json.loads((saved / "config.json").read_text()) | changes
        config = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return make


def plan_of(folder, recipe="lora", **overrides):
    """Return the plan for a large card, and what it says of the files."""
    plan = get_recipe(recipe, model=folder, device="H100", **overrides).plan()
    return plan, [told for told in plan.assumptions if "files" in told or "quantised by" in told]


def test_what_agrees_is_not_told(copy, saved):
    plan, told = plan_of(copy())
    bare, _ = plan_of(str(saved))
    assert not told and plan.parts == bare.parts


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": None}, ""),
        ({"dtype": "float32"}, "config.json says float32, the files hold bfloat16"),
        ({"tie_word_embeddings": True}, "config.json says a tied head, the files hold one of its own"),
        ({"vocab_size": 1000}, "model.embed_tokens.weight is 2048 × 128 in the files, 1000 × 128 by config.json"),
        ({"num_hidden_layers": 1}, "numbers more than config.json tells of"),
    ],
)
def test_where_they_differ_the_files_are_right(copy, changes, words):
    from hf_peft_recipes.plan.stored import read_stored

    folder = copy(**changes)
    plan, told = plan_of(folder, dtype="bfloat16")
    assert words in "; ".join(told) and bool(words) == bool(told)
    assert plan.parts["weights"] == read_stored(Path(folder), folder).total_bytes
    assert plan.parameters - plan.trainable == plan.parts["weights"] // 2


def test_a_type_that_config_does_not_state_is_the_files(copy):
    plan, _ = plan_of(copy(dtype=None), dtype="auto")
    other, _ = plan_of(copy(dtype="float32"), dtype="auto")
    assert other.parts["weights"] == 2 * plan.parts["weights"]


def test_a_head_that_the_files_lack_is_tied(copy, tmp_path):
    folder = copy()
    index = tmp_path / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    holder = tmp_path / names["weight_map"]["lm_head.weight"]
    data = holder.read_bytes()
    header = json.loads(data[8:])
    del header["lm_head.weight"]
    text = json.dumps(header).encode()
    holder.write_bytes(len(text).to_bytes(8, "little") + text)
    plan, told = plan_of(folder)
    assert told == ["config.json says an untied head, the files hold none"]
    assert plan.parameters - plan.trainable == plan.parts["weights"] // 2


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"\x10\0\0\0\0\0\0\0{"])
def test_broken_files_are_one_line(copy, tmp_path, content):
    folder = copy()
    next(tmp_path.glob("*.safetensors")).write_bytes(content)
    with pytest.raises(UserError, match=r"weights of model .* cannot be read"):
        plan_of(folder)


def test_files_in_4_bits_are_planned_so_without_a_word_of_the_recipe(tmp_path):
    from transformers import AutoModelForCausalLM

    from hf_peft_recipes.models import load_base

    quantization = get_recipe("qlora", device="H100").resolved.section("quantization")
    model = load_base(AutoModelForCausalLM, {"name_or_path": str(MODEL_DIR), "dtype": "bfloat16"}, quantization)
    model.save_pretrained(tmp_path)
    plan, told = plan_of(str(tmp_path))
    quantized, _ = plan_of(str(MODEL_DIR), "qlora")
    assert plan.parts["weights_quantized"] == quantized.parts["weights_quantized"] and not told
    assert plan.parts["weights"] == quantized.parts["weights"]
    # Nothing is made whole to be quantised.
    assert plan.phases["load"] < quantized.phases["load"]
    assert not any("NF4" in name for advice in plan.advice for name in advice.names)


def test_files_in_8_bit_floats_are_planned_so_without_a_word_of_the_recipe(tmp_path):
    from transformers import AutoModelForCausalLM

    from hf_peft_recipes.models import load_base

    quantization = get_recipe("lora_fp8", device="H100").resolved.section("quantization")
    model = load_base(AutoModelForCausalLM, {"name_or_path": str(MODEL_DIR), "dtype": "bfloat16"}, quantization)
    model.save_pretrained(tmp_path)
    plan, told = plan_of(str(tmp_path))
    quantized, _ = plan_of(str(MODEL_DIR), "lora_fp8")
    assert plan.parts["weights_quantized"] == quantized.parts["weights_quantized"] and not told
    assert plan.parts["weights"] == quantized.parts["weights"]
    assert plan.phases["load"] < quantized.phases["load"]


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "torchao"])
def test_a_way_of_quantising_that_is_not_known_is_said(copy, tmp_path, method):
    from hf_peft_recipes.plan.stored import read_stored

    folder = copy(quantization_config={"quant_method": method, "bits": 4})
    plan, told = plan_of(folder)
    assert told == [f"the weights are quantised by {method}, which is not known here: weights as large as the files"]
    assert plan.parts["weights_quantized"] == read_stored(tmp_path, folder).total_bytes
    assert "weights" not in plan.parts
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    _, told = plan_of(folder)
    assert "for want of the files" in told[0] and len(told) == 1

from dataclasses import replace

import pytest

from hf_peft_recipes import get_recipe
from hf_peft_recipes.api import resolve_recipe
from hf_peft_recipes.cli.flags import parse_flags
from hf_peft_recipes.device import KNOWN_DEVICES, named_device
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec import compose, resolve, shown


def flags(name, *words, device="H100", **options):
    return resolve_recipe(name, parse_flags(words), device, **options).resolved


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_all_spellings_are_one_recipe():
    table = get_recipe("lora", device="H100").show()
    for name in ("sft", "lora+sft", "sft+lora", "lora + sft"):
        assert get_recipe(name, device="H100").show() == table
    assert get_recipe("qlora+lora", device="H100").name == "qlora"


@pytest.mark.parametrize("name", ["lora+full", "qlora+full+sft"])
def test_two_methods_are_refused(name):
    with pytest.raises(UserError, match="two methods of different lines"):
        get_recipe(name)


def test_two_objectives_are_refused(write):
    other = write("objective: sft\n", "other.yaml")
    lookup = {name: (name, name, "objective: sft\n") for name in ("sft", "kto")} | {
        "lora": ("lora", "lora", "adapter: {}\n")
    }
    with pytest.raises(UserError, match="two objectives of different lines"):
        compose("sft+kto", lambda name: lookup[name])
    assert get_recipe(other).resolved.objective == "sft"


def test_a_method_alone_takes_sft_and_an_objective_alone_lora():
    assert flags("qlora").objective == "sft"
    assert flags("sft").section("adapter")["peft_type"] == "LORA"
    assert flags("full").section("adapter") is None


def test_diamond_is_applied_once_and_a_cycle_is_an_error():
    files = {
        "base": ("base", "base", {"objective": "sft", "adapter": {"peft_type": "LORA", "r": 1}}),
        "left": ("left", "left", {"extends": "base", "adapter": {"r": 2}}),
        "right": ("right", "right", {"extends": "base", "adapter": {"lora_alpha": 3}}),
        "both": ("both", "both", {"extends": ["left", "right"]}),
        "snake": ("snake", "snake", {"extends": "tail"}),
        "tail": ("tail", "tail", {"extends": "snake"}),
    }
    merged = compose("both", files.__getitem__)
    assert [part.name for part in merged.parts] == ["base", "left", "right", "both"]
    assert merged.entries.section("adapter") == {"peft_type": "LORA", "r": 2, "lora_alpha": 3}
    with pytest.raises(UserError, match="snake -> tail -> snake"):
        compose("snake", files.__getitem__)


@pytest.mark.parametrize(("name", "rate"), [("lora", 2e-4), ("qlora", 2e-4), ("full", 2e-5)])
def test_the_rate_belongs_to_objective_and_method(name, rate):
    assert flags(name).value("training.learning_rate") == rate


def test_a_scaled_rate_says_so():
    entry = shown(flags("lora"))["training"]["learning_rate"]
    assert entry["reason"].startswith("2e-4 = 2e-5 (sft) × 10 (lora)")


def test_a_given_rate_is_never_scaled(write):
    assert flags("lora", "--learning_rate", "1e-3").value("training.learning_rate") == 1e-3
    assert flags(write("extends: lora\ntraining: {learning_rate: 7e-5}\n")).value("training.learning_rate") == 7e-5
    of_objective = write("extends: sft\nobjective: sft\ntraining: {learning_rate: 7e-5}\n", "gentle.yaml")
    assert flags(of_objective).value("training.learning_rate") == 7e-4


def test_rules_choose_by_device_with_a_reason():
    cpu, gpu = named_device("cpu"), named_device("H100")
    assert flags("lora").value("training.per_device_train_batch_size") == 8
    on_cpu = get_recipe("qlora", device=cpu).show()
    batch = on_cpu["training"]["per_device_train_batch_size"]
    assert batch["value"] == 1
    assert batch["origin"] == "rule of recipes/objectives/sft.yaml (device.flash_attention: false)"
    assert "dense mask" in batch["reason"]
    assert on_cpu["model"]["dtype"]["value"] == "float32"
    assert get_recipe("qlora", device=gpu).resolved.value("training.use_cpu") is None
    # Pinned memory is what a copy may go on from by itself.
    for device, config in ((cpu, None), (gpu, {"non_blocking": True})):
        assert get_recipe("lora", device=device).resolved.value("training.accelerator_config") == config
    assert get_recipe("lora", device="T4").resolved.value("training.fp16") is True


def test_the_demo_has_its_own_values_and_show_does_not_tell_of_them():
    recipe = get_recipe("lora", device="cpu")
    assert recipe.resolved.value("training.learning_rate") == 2e-4
    demo = recipe.decide(True)
    assert demo.value("training.learning_rate") == 1e-3
    assert demo.value("training.gradient_accumulation_steps") == 2


def test_effective_batch_is_the_same_on_every_device():
    for device in KNOWN_DEVICES.values():
        training = get_recipe("lora", device=device).resolved.section("training")
        assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 8


def test_a_rule_quantises_nothing_by_itself():
    assert get_recipe("lora", device="cpu").resolved.section("quantization") is None


def test_flags_win_over_rules():
    resolved = flags("lora", "--per_device_train_batch_size", "4", device="cpu")
    assert resolved.value("training.per_device_train_batch_size") == 4
    assert resolved.value("training.gradient_accumulation_steps") == 8


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        (["--learning_rate=3e-4"], "training.learning_rate", 3e-4),
        (["--learning-rate", "3e-4"], "training.learning_rate", 3e-4),
        (["--r", "8"], "adapter.r", 8),
        (["--target_modules", "q_proj", "v_proj"], "adapter.target_modules", ["q_proj", "v_proj"]),
        (["--use_dora"], "adapter.use_dora", True),
        (["--packing", "false"], "training.packing", False),
        (["--eval_strategy", "no"], "training.eval_strategy", "no"),
        (["--max_length", "null"], "training.max_length", None),
        (["--revision", "1e5"], "model.revision", "1e5"),
        (["--model", "123"], "model.name_or_path", "123"),
        (["--data.columns.prompt", "2024"], "data.columns.prompt", "2024"),
        (["--columns.prompt", "question"], "data.columns.prompt", "question"),
        (["--evaluation.max_rows", "5"], "evaluation.max_rows", 5),
        (["--bnb_4bit_quant_type", "fp4"], "quantization.bnb_4bit_quant_type", "fp4"),
        (["--lr_scheduler_kwargs", "{num_cycles: 2}"], "training.lr_scheduler_kwargs.num_cycles", 2),
        (["--data.max_dropped", "2.5%"], "data.max_dropped", 0.025),
        (["--dataset", "a.jsonl", "b.jsonl"], "data.dataset", ["a.jsonl", "b.jsonl"]),
        (["--format.prompt", "Review: {text}"], "data.format.prompt", "Review: {text}"),
        (["--speed", "off"], "speed", "off"),
        (["--trust_remote_code"], "model.trust_remote_code", True),
        (["--gradient_checkpointing", "true"], "training.activation_checkpointing", True),
    ],
)
def test_flags_reach_their_section(words, path, value):
    assert flags("qlora", *words).value(path) == value


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("lora", ["--learning_rat", "1"], r"unknown option --learning_rat; did you mean 'learning_rate'"),
        ("full", ["--lora_alpha", "1"], r"unknown option --lora_alpha \(this recipe has no adapter\)"),
        ("lora", ["--learning_rate", "fast"], r"training.learning_rate = 'fast' \(from --learning_rate\): a number"),
        ("lora", ["--packing", "maybe"], r"training.packing = 'maybe' .*: true or false is wanted"),
        ("lora", ["--r", "1.5"], r"adapter.r = 1.5 .*: a whole number is wanted"),
        ("lora", ["--data.max_dropped", "many%"], r"data.max_dropped = 'many%' .*a number is wanted"),
        ("lora", ["--speed", "of"], r"speed = 'of' \(from --speed\): one of auto, off is wanted; did you mean 'off'"),
        ("lora", ["--data.overlong", "spli"], r"data.overlong = 'spli' .*did you mean 'split'"),
        ("lora", ["--data.columns.promt", "x"], r"unknown role 'promt' .*did you mean 'prompt'"),
        ("lora", ["--data.column.prompt", "x"], r"unknown key 'data.column.*did you mean .*columns"),
        ("lora", ["--training.r", "8"], r"unknown key 'training.r' .*did you mean 'adapter.r'"),
        ("lora", ["--hub_token", "hf_x"], r"--hub_token is not to be set here: a token never stands in a recipe"),
        ("lora", ["--training.output_dir", "x"], r"training.output_dir .*--output_dir"),
        ("lora", ["--assistant_only_loss"], r"--assistant_only_loss .*data.loss_on"),
        ("lora", ["--peft_type", "LORAX"], r"PEFT has no peft_type 'LORAX'"),
        ("lora", ["--training", "x"], r"--training is a section"),
        ("lora", ["word"], r"'word' belongs to no flag"),
        ("full", ["--quantization.load_in_4bit"], r"quantises the base .* but has no adapter to train"),
    ],
)
def test_mistakes_name_the_thing_and_the_nearest_right_answer(name, words, message):
    with pytest.raises(UserError, match=message):
        flags(name, *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: lora\ntrainning: {}\n", r"unknown key 'trainning'; did you mean 'training'"),
        ("extends: lora\ntraining: {learnin_rate: 1}\n", r"'training.learnin_rate' .*mine.yaml.*did you mean"),
        ("extends: lora\ntraining: 3\n", r"training is a mapping or null"),
        ("extends: lroa\n", r"unknown recipe 'lroa'; did you mean"),
        ("extends: lora\nmodel: {trust_remote_code: true}\n", r"trust_remote_code is a decision of who runs"),
        ("extends: lora\nrules: [{when: {device.bf: true}, set: {}, why: x}]\n", r"unknown fact 'device.bf'"),
        ("extends: lora\nrules: [{when: {}, set: {}}]\n", r"a rule has exactly the keys when, set and why"),
        ("extends: lora\nremove: [training.warmup_stepz]\n", r"nothing to remove at 'training.warmup_stepz'"),
        ("objective: ppo\n", r"unknown objective 'ppo'"),
        ("extends: full\nquantization: {load_in_4bit: true}\n", r"has no adapter to train"),
    ],
)
def test_mistakes_in_a_file(write, text, message):
    with pytest.raises(UserError, match=message):
        flags(write(text))


def test_null_is_passed_on_and_remove_drops(write):
    path = write("extends: lora\ntraining: {max_length: null}\nremove: [training.packing, adapter.r]\n")
    resolved = flags(path)
    assert resolved.section("training")["max_length"] is None
    assert "packing" not in resolved.section("training")
    assert "r" not in resolved.section("adapter")


def test_adapter_null_means_full_fine_tuning(write):
    resolved = flags(write("extends: lora\nadapter: null\n"))
    assert resolved.section("adapter") is None


@pytest.mark.parametrize("name", ["lora", "qlora", "full"])
@pytest.mark.parametrize("device", ["cpu", "H100", "T4"])
def test_a_written_recipe_repeats_itself(name, device, write):
    words = ["--learning_rate", "3e-4", "--per_device_train_batch_size", "2", "--data.columns.prompt", "q"]
    first = resolve_recipe(name, parse_flags(words), device)
    path = write(first.to_yaml())
    again = get_recipe(path, device=device).resolved
    for section in ("model", "quantization", "adapter", "training", "data", "evaluation"):
        assert again.section(section) == first.resolved.section(section)


def test_a_written_recipe_chooses_again_on_other_hardware_unless_exact(write):
    path = write(resolve_recipe("qlora", parse_flags(["--gradient_accumulation_steps", "3"]), "cpu").to_yaml())
    elsewhere = get_recipe(path, device="H100").resolved
    assert elsewhere.section("model")["dtype"] == "bfloat16"
    assert elsewhere.value("training.per_device_train_batch_size") == 8
    assert elsewhere.value("training.use_cpu") is None
    # What the user gave is kept everywhere.
    assert elsewhere.value("training.gradient_accumulation_steps") == 3
    exact = get_recipe(path, device="H100", exact=True).resolved
    assert exact.section("model")["dtype"] == "float32"
    assert exact.value("training.use_cpu") is True


def test_resolution_is_pure():
    facts = {**replace(named_device("H100"), bf16=False).facts(), "run.demo": False}
    files = {"a": ("a", "a", "objective: sft\nadapter: {peft_type: LORA}\n")}
    first, second = (resolve(compose("a", files.__getitem__), [], facts) for _ in range(2))
    assert first == second


def test_who_quantises_is_exchanged_with_its_keys_and_rules():
    words = ["--quant_method", "torchao", "--quant_type", "Float8WeightOnlyConfig"]
    for device in ("H100", "T4"):
        resolved = resolve_recipe("qlora", parse_flags(words), device).resolved
        assert resolved.section("quantization") == get_recipe("lora_fp8").resolved.section("quantization")
    assert resolved.value("model.dtype") == "float32"
    with pytest.raises(UserError, match=r"quant_method 'torchoa' is not known here; did you mean 'torchao'"):
        resolve_recipe("qlora", parse_flags(["--quant_method", "torchoa"]), "H100")
    with pytest.raises(UserError, match=r"quantization.quant_type is missing \(Float8WeightOnlyConfig\)"):
        resolve_recipe("lora", parse_flags(words[:2]), "H100")
    with pytest.raises(UserError, match=r"include_input_output_embeddings .* embedding and head stay whole"):
        resolve_recipe("lora", parse_flags([*words, "--include_input_output_embeddings", "true"]), "H100")


def test_no_two_classes_share_a_flag():
    from hf_peft_recipes.spec.sections import section_fields

    for name in ("qlora", "lora_fp8"):
        fields = section_fields(flags(name).entries)
        upstream = [set(fields[section]) for section in ("model", "quantization", "adapter", "training")]
        assert len(set().union(*upstream)) == sum(map(len, upstream))


def test_fields_read_from_sources_are_those_of_the_classes():
    import dataclasses

    from peft import IA3Config, LoraConfig
    from trl import SFTConfig

    from hf_peft_recipes.spec import upstream

    for found, real in (
        (upstream.training_fields("sft"), SFTConfig),
        (upstream.adapter_fields("LORA"), LoraConfig),
        (upstream.adapter_fields("IA3"), IA3Config),
    ):
        assert set(found) == {field.name for field in dataclasses.fields(real)}


def test_every_peft_type_has_its_fields():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from hf_peft_recipes.spec import upstream

    for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        assert set(upstream.adapter_fields(peft_type.value)) == set(config.__dataclass_fields__), peft_type


def test_a_rule_yields_to_the_files_after_its_own(write):
    path = write("extends: lora\ntraining: {per_device_train_batch_size: 3, learning_rate: 3.0e-4}\n")
    on_cpu = get_recipe(path, device="cpu")
    assert on_cpu.resolved.value("training.per_device_train_batch_size") == 3
    assert on_cpu.resolved.value("training.learning_rate") == 3e-4
    again = get_recipe(write(on_cpu.to_yaml(), "again.yaml"), device="cpu").resolved
    assert again.section("training") == on_cpu.resolved.section("training")

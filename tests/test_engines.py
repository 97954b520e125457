"""Engines: what configurations ask for, what is refused before anything is loaded, what must have come up."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from hf_peft_recipes import engines, get_recipe, launching
from hf_peft_recipes.cli import training
from hf_peft_recipes.engines import Asked, check_came_up, check_recipe, read_config, read_environment
from hf_peft_recipes.errors import LaunchError, UserError
from hf_peft_recipes.launching import CONFIGS_FOLDER, config_path, machine_options

SHIPPED = {
    "single": Asked("NO", 1),
    "ddp": Asked("MULTI_GPU", 2),
    "fsdp2": Asked("FSDP", 2, fsdp_version=2, loads_once=True),
    "zero2": Asked("DEEPSPEED", 2, zero_stage=2),
    "zero3": Asked("DEEPSPEED", 2, zero_stage=3),
}
ENVIRONMENTS = {
    "MULTI_GPU": prepare_multi_gpu_env,
    "FSDP": prepare_multi_gpu_env,
    "DEEPSPEED": prepare_deepspeed_cmd_env,
}


def variables(name):
    """What accelerate's launcher makes of a shipped configuration for the processes that it starts."""
    words = ["--config_file", str(config_path(name)), "--main_process_port", "0", "-m", "hf_peft_recipes"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    found = ENVIRONMENTS[SHIPPED[name].kind](arguments)
    environment = found if isinstance(found, dict) else found[1]
    return environment | {"WORLD_SIZE": str(arguments.num_processes)}


def test_the_shipped_configurations_are_these():
    assert {path.stem: read_config(path) for path in CONFIGS_FOLDER.glob("*.yaml")} == SHIPPED


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "single"])
def test_a_launched_process_reads_what_its_configuration_says(name):
    assert read_environment(variables(name)) == SHIPPED[name]


def test_fsdp2_is_what_accelerate_makes_of_it(monkeypatch):
    for key, value in variables("fsdp2").items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_leaves_to_the_recipe_what_is_the_recipes(stage, monkeypatch):
    for key, value in variables(f"zero{stage}").items():
        if key.startswith("ACCELERATE_"):
            monkeypatch.setenv(key, value)
    config = DeepSpeedPlugin().deepspeed_config
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_accumulation_steps"] == config["gradient_clipping"] == "auto"
    assert config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save", False) is (stage == 3)


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n", "holds no keys"), ("a: [\n", "while parsing"), ("", "holds no keys")]
)
def test_configurations_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "own.yaml")


def test_a_file_of_deepspeeds_own_says_the_stage(tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    (tmp_path / "own.yaml").write_text(
        f"distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: {tmp_path / 'ds.json'}}}\n"
    )
    assert read_config(tmp_path / "own.yaml").zero_stage == 3
    (tmp_path / "ds.json").write_text("{")
    with pytest.raises(UserError, match="DeepSpeed configuration"):
        read_config(tmp_path / "own.yaml")


def test_a_name_that_is_nearly_one():
    with pytest.raises(UserError, match="did you mean 'fsdp2'"):
        config_path("fdsp2")


FSDP2, ZERO2, ZERO3, DDP = SHIPPED["fsdp2"], SHIPPED["zero2"], SHIPPED["zero3"], SHIPPED["ddp"]


@pytest.mark.parametrize(
    ("recipe", "values", "asked", "message"),
    [
        ("lora", {"use_cpu": True}, FSDP2, "training.use_cpu true does not go with FSDP2: it has no path on a CPU"),
        (
            "qlora",
            {},
            FSDP2,
            r"bnb_4bit_quant_storage uint8 \(--bnb_4bit_quant_storage bfloat16 does\) does not go with FSDP2",
        ),
        ("qlora", {"bnb_4bit_quant_storage": "float32"}, FSDP2, "--bnb_4bit_quant_storage bfloat16 does"),
        ("qlora", {}, ZERO3, "does not go with DeepSpeed ZeRO-3"),
        ("qlora", {"bnb_4bit_quant_storage": "bfloat16"}, FSDP2, None),
        ("qlora", {}, ZERO2, None),
        ("qlora", {}, DDP, None),
        ("lora_int8", {}, FSDP2, "load_in_8bit does not go with FSDP2"),
        ("lora_fp8", {}, FSDP2, "quant_type Float8WeightOnlyConfig does not go with FSDP2"),
        ("lora_fp8", {}, ZERO3, "quant_type Float8WeightOnlyConfig does not go with DeepSpeed ZeRO-3"),
        ("lora_fp8", {}, ZERO2, None),
        ("lora_fp8", {}, DDP, None),
        ("pissa", {}, FSDP2, "adapter.init_lora_weights pissa does not go with FSDP2"),
        ("eva", {}, ZERO3, "adapter.init_lora_weights eva does not go with DeepSpeed ZeRO-3"),
        ("pissa", {}, Asked("FSDP", 2, fsdp_version=2), None),
        ("pissa", {}, ZERO2, None),
        ("prompt_tuning", {}, FSDP2, "adapter.peft_type PROMPT_TUNING does not go with FSDP2"),
        ("trainable_tokens", {}, FSDP2, "adapter.peft_type TRAINABLE_TOKENS does not go with FSDP2"),
        ("lora", {"trainable_token_indices": [1]}, FSDP2, "adapter.trainable_token_indices does not go with FSDP2"),
        ("galore", {}, FSDP2, None),
        ("galore", {}, ZERO2, "training.optim galore_adamw.* does not go with DeepSpeed ZeRO-2"),
        ("lora", {}, FSDP2, None),
        ("full", {}, ZERO3, None),
    ],
)
def test_what_a_recipe_has_that_an_engine_cannot_train(recipe, values, asked, message, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: True)
    resolved = get_recipe(recipe, device="H100", **values).resolved
    if message is None:
        check_recipe(resolved, asked)
        return
    with pytest.raises(UserError, match=message):
        check_recipe(resolved, asked)


def test_deepspeed_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "deepspeed" else find_spec(name))
    with pytest.raises(UserError, match=r"pip install 'hf-peft-recipes\[deepspeed\]'"):
        check_recipe(get_recipe("lora").resolved, ZERO2)


def came_up(kind, precision="no", version=1, stage=0):
    plugins = SimpleNamespace(fsdp_version=version), SimpleNamespace(zero_stage=stage)
    state = SimpleNamespace(fsdp_plugin=plugins[0], deepspeed_plugin=plugins[1])
    return SimpleNamespace(distributed_type=SimpleNamespace(value=kind), mixed_precision=precision, state=state)


@pytest.mark.parametrize(
    ("asked", "accelerator", "message"),
    [
        (FSDP2, came_up("MULTI_GPU"), "FSDP2 was asked for and MULTI_GPU came up"),
        (FSDP2, came_up("FSDP", version=1), "FSDP2 was asked for and FSDP1 came up"),
        (DDP, came_up("FSDP", version=2), "the trainer's arguments bring FSDP up"),
        (ZERO3, came_up("DEEPSPEED", stage=2), "DeepSpeed ZeRO-3 was asked for and ZeRO-2 came up"),
        (DDP, came_up("MULTI_GPU", "bf16"), "mixed precision 'no' and 'bf16' came up"),
        (FSDP2, came_up("FSDP", version=2), None),
        (ZERO3, came_up("DEEPSPEED", stage=3), None),
        (DDP, came_up("MULTI_CPU"), None),
    ],
)
def test_what_came_up_is_compared_with_what_was_asked_for(asked, accelerator, message):
    arguments = SimpleNamespace(bf16=False, fp16=False)
    if message is None:
        check_came_up(asked, accelerator, arguments)
        return
    with pytest.raises(LaunchError, match=message):
        check_came_up(asked, accelerator, arguments)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, []),
        ({"main_process_port": 0}, ["--main_process_port", "0"]),
        (
            {"num_machines": 2, "machine_rank": 0, "main_process_ip": "10.0.0.1", "main_process_port": 29500},
            [
                "--num_machines",
                "2",
                "--machine_rank",
                "0",
                "--main_process_ip",
                "10.0.0.1",
                "--main_process_port",
                "29500",
            ],
        ),
    ],
)
def test_words_for_several_machines(given, words):
    assert machine_options(given) == words


def test_a_machine_that_would_not_find_the_others():
    with pytest.raises(UserError, match="--num_machines 2 needs --machine_rank too"):
        machine_options({"num_machines": 2, "main_process_ip": "10.0.0.1", "main_process_port": 29500})


@pytest.mark.parametrize(
    ("num_processes", "config", "machines", "expected"),
    [
        (None, "ddp", 1, 2),
        (None, "single", 1, 1),
        (4, "ddp", 1, 4),
        (None, None, 2, 2),
        (None, "own", 1, 3),
    ],
)
def test_without_a_number_the_configurations_counts(num_processes, config, machines, expected, tmp_path, monkeypatch):
    if config == "own":
        config = str(tmp_path / "own.yaml")
        (tmp_path / "own.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n")
    started = []
    monkeypatch.setattr(launching, "launch", lambda words, number, *rest: started.append((words, number)) or 0)
    given = {"num_machines": machines, "machine_rank": 1, "main_process_ip": "10.0.0.1", "main_process_port": 1}
    monkeypatch.setattr("sys.argv", ["x", "train", "lora", "--accelerate_config", "z", "--machine_rank=1", "--r", "8"])
    assert training._launched(get_recipe("lora"), num_processes, config, given) == 0
    assert started == [(["train", "lora", "--r", "8", "--no-rehearse"], expected)]


def test_what_has_no_path_on_a_cpu_is_not_even_started(monkeypatch):
    monkeypatch.setattr(launching, "launch", lambda *_: pytest.fail("it was started"))
    with pytest.raises(UserError, match="use_cpu true does not go with FSDP2"):
        training._launched(get_recipe("lora", device="cpu"), 2, "fsdp2", dict.fromkeys(launching.MACHINE_FLAGS))


def test_machines_share_processes_out_evenly():
    with pytest.raises(UserError, match="--num_processes 3 is the number on all 2 machines"):
        launching.launch(["train"], 3, None, True, [], [], 2)

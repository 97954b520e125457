"""Well-known recipes hold the values that were published, under the names that upstream has today."""

import pytest

from hf_peft_recipes import get_recipe

NF4 = {"quantization.load_in_4bit": True, "quantization.bnb_4bit_quant_type": "nf4"}
PUBLISHED = {
    "guanaco": {
        **NF4, "quantization.bnb_4bit_use_double_quant": True, "adapter.r": 64, "adapter.lora_alpha": 16,
        "adapter.lora_dropout": 0.1, "adapter.target_modules": "all-linear", "training.learning_rate": 2e-4,
        "training.lr_scheduler_type": "constant_with_warmup", "training.warmup_steps": 0.03, "training.max_steps": 1875,
        "training.max_grad_norm": 0.3, "training.adam_beta2": 0.999, "training.weight_decay": 0.0,
        "training.optim": "paged_adamw_32bit", "training.train_sampling_strategy": "group_by_length",
        "training.max_length": 16 + 512, "training.bf16": True,
    },
    "alpaca_lora": {
        "adapter.r": 8, "adapter.lora_alpha": 16, "adapter.lora_dropout": 0.05,
        "adapter.target_modules": ["q_proj", "v_proj"], "training.learning_rate": 3e-4, "training.num_train_epochs": 3,
        "training.max_length": 256, "training.warmup_steps": 100, "data.loss_on": "all",
        "training.per_device_train_batch_size": 4,
    },
    "zephyr_sft_qlora": {
        **NF4, "adapter.r": 16, "adapter.lora_alpha": 16, "adapter.lora_dropout": 0.05,
        "adapter.target_modules": "all-linear", "training.learning_rate": 2e-4, "training.lr_scheduler_type": "cosine",
        "training.warmup_steps": 0.1, "training.max_length": 2048, "training.num_train_epochs": 1,
    },
    "zephyr_dpo_qlora": {
        **NF4, "adapter.r": 128, "adapter.lora_alpha": 128, "training.beta": 0.01, "training.learning_rate": 5e-6,
        "training.max_length": 1024, "training.optim": "paged_adamw_32bit",
    },
    "smollm3_sft": {
        "training.learning_rate": 2e-5, "training.lr_scheduler_type": "cosine_with_min_lr",
        "training.lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "training.warmup_steps": 0.03,
        "training.max_grad_norm": 0.2, "training.packing": True, "training.max_length": 65_536,
        "training.num_train_epochs": 5, "data.loss_on": "assistant",
    },
    "smollm3_apo": {
        "training.loss_type": ["apo_zero"], "training.learning_rate": 1e-6, "training.beta": 0.05,
        "training.max_length": 24_576,
    },
    "tulu3_sft": {
        "training.learning_rate": 5e-6, "training.lr_scheduler_type": "linear", "training.warmup_steps": 0.03,
        "training.num_train_epochs": 2, "training.max_length": 4096,
    },
    "tulu3_dpo": {
        "training.learning_rate": 5e-7, "training.loss_type": ["sigmoid_norm"], "training.beta": 5.0,
        "training.warmup_steps": 0.1, "training.max_length": 2048,
    },
    "lora_without_regret": {
        "adapter.r": 256, "adapter.lora_alpha": 32, "adapter.target_modules": "all-linear",
        "training.learning_rate": 10 * 2e-5,
    },
}  # fmt: skip
"""With the sources that each recipe names."""

ROWS_A_STEP = {
    "guanaco": 16, "alpaca_lora": 128, "zephyr_sft_qlora": 8, "zephyr_dpo_qlora": 16, "smollm3_sft": 128,
    "smollm3_apo": 32, "tulu3_sft": 128, "tulu3_dpo": 128,
}  # fmt: skip
"""On one device."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_reference_recipe_holds_what_was_published(name):
    recipe = get_recipe(name, device="H100").resolved
    section = {path.split(".")[0]: recipe.section(path.split(".")[0]) for path in PUBLISHED[name]}
    for path, expected in PUBLISHED[name].items():
        head, key = path.split(".")
        assert section[head][key] == expected, path


@pytest.mark.parametrize("name", ROWS_A_STEP)
def test_a_step_takes_as_many_rows_as_was_published(name):
    training = get_recipe(name, device="H100").resolved.section("training")
    assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == ROWS_A_STEP[name]
    assert get_recipe("lora_without_regret").resolved.value("training.gradient_accumulation_steps") < 32


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith(("smollm3", "tulu3"))])
def test_what_trains_the_whole_model_has_no_adapter(name):
    assert not get_recipe(name).resolved.section("adapter")
    assert not get_recipe(name).resolved.section("quantization")

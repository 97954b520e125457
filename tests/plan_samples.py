"""Configs of models to be planned, and the numbers of their runs."""

from hf_peft_recipes import get_recipe
from hf_peft_recipes.plan.make_job import make_job

SMALL = {
    "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 2048,
}  # fmt: skip
OWN = {
    "gemma": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": {"pad_token_id": 0},
}
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}  # fmt: skip
LLAMA_70B = {
    **LLAMA_8B, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672,
}  # fmt: skip


def small_config(kind):
    """Return the config of a tiny model as transformers itself writes it."""
    from transformers import CONFIG_MAPPING

    values = CONFIG_MAPPING[kind](**SMALL, **OWN.get(kind, {})).to_dict()
    return {**values, "dtype": "bfloat16"}


def job_of(recipe, config, device, **overrides):
    """Return the numbers of a recipe's run on a device."""
    options = {"model": "x", "device": device, "max_length": 256, "per_device_train_batch_size": 1} | overrides
    return make_job(get_recipe(recipe, **options).resolved, config, "x", device)

"""RMSNorm and rotary positions as functions of their own: right by hand, as transformers', smaller, left where unknown."""

import copy

import pytest
import torch
from test_lora_speed import off, pair, saved_bytes, step
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from hf_peft_recipes.speed import rms_norm, rotary
from hf_peft_recipes.speed.rms_norm import RmsNorm
from hf_peft_recipes.speed.rotary import Rotary

BOTH = {"rms_norm", "rotary"}


def model_of(kind, **changes):
    """Return a tiny model of an architecture, its norms frozen and their weights not all one."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind].from_dict({**sizes, **changes})).float().train()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.normal_(1, 0.2)
            parameter.requires_grad_(False)
    return model


def install(model):
    return {name for name, room in (("rms_norm", rms_norm), ("rotary", rotary)) if room.install(model)}


def test_the_norms_gradient_is_right_in_float64():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight
    torch.testing.assert_close(RmsNorm.apply(x, weight, 0.1), expected)
    assert torch.autograd.gradcheck(lambda x: RmsNorm.apply(x, weight, 0.1), x)


def test_the_turns_gradient_is_right_in_float64():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 6, dtype=torch.float64).transpose(1, 2).requires_grad_()
    # Of no angle: the two halves need not share theirs.
    cos, sin = torch.randn(2, 2, 1, 4, 6, dtype=torch.float64)
    expected = x * cos + modeling_llama.rotate_half(x) * sin
    torch.testing.assert_close(Rotary.apply(x, cos, sin), expected)
    assert torch.autograd.gradcheck(lambda x: Rotary.apply(x, cos, sin), x)


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["kept", "recomputed", "re-entrant"])
@pytest.mark.parametrize(
    ("kind", "installed"),
    [
        ("llama", BOTH), ("mistral", BOTH), ("qwen2", BOTH), ("qwen3", BOTH), ("mixtral", BOTH),
        # It turns a part of each head; its norms weigh in float32, from one upwards; it turns neighbours.
        ("phi3", {"rms_norm"}), ("gemma2", {"rotary"}), ("cohere", set()),
    ],
)  # fmt: skip
def test_float32_agrees_with_transformers(kind, installed, checkpointing):
    plain = model_of(kind, tie_word_embeddings=False)
    fast = copy.deepcopy(plain)
    assert install(fast) == installed
    for model in (plain, fast) if checkpointing is not None else ():
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    (loss, gradients), (fast_loss, fast_gradients) = step(plain), step(fast)
    torch.testing.assert_close(fast_loss, loss, rtol=1e-5, atol=0)
    assert gradients.keys() == fast_gradients.keys() and off(fast_gradients, gradients) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32 base", "bfloat16 base"])
def test_autocast_is_no_further_from_the_truth_than_transformers(dtype):
    plain, before, _ = pair(dtype=dtype, paths=("lora_linear", "gated_mlp"))
    after = copy.deepcopy(before)
    assert install(after) == BOTH
    truth = step(copy.deepcopy(plain).double())[1]
    ours, theirs = (step(model, torch.bfloat16)[1] for model in (after, before))
    assert off(ours, truth) < 1.02 * off(theirs, truth)


def test_less_is_kept_for_the_way_back():
    _, fast, _ = pair(dtype=torch.bfloat16)
    before = saved_bytes(fast)
    install(fast)
    assert saved_bytes(fast) < 0.92 * before


def test_norms_that_learn_are_left_alone():
    model = model_of("llama")
    model.model.norm.weight.requires_grad_(True)
    rms_norm.install(model)
    changed = [name for name, module in model.named_modules() if "norm" in name and "forward" in vars(module)]
    assert len(changed) == 4 and "model.norm" not in changed


def test_what_is_evaluated_comes_from_transformers(monkeypatch):
    model = model_of("llama")
    install(model)
    for room in (RmsNorm, Rotary):
        monkeypatch.setattr(room, "apply", None)
    tokens = torch.randint(5, 200, (1, 9))
    with torch.no_grad():
        model(tokens)
    with pytest.raises(TypeError, match="NoneType"):
        model(tokens)


def test_no_other_model_is_changed(monkeypatch):
    fast, other = model_of("llama"), model_of("llama")
    before = vars(modeling_llama).copy()
    install(fast)
    assert vars(modeling_llama) == before
    for room in (RmsNorm, Rotary):
        monkeypatch.setattr(room, "apply", None)
    other(torch.randint(5, 200, (1, 9)))


def test_a_copy_turns_and_norms_by_itself():
    model = model_of("llama")
    install(model)
    tokens = torch.randint(5, 200, (1, 9))
    before, copied = model(tokens).logits, copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(copied(tokens).logits, before)


def test_a_function_that_takes_something_else_is_left_alone(monkeypatch):
    def apply_rotary_pos_emb(q, k, v, cos, sin, unsqueeze_dim=1):
        q_embed = (q * cos) + (rotate_half(q) * sin)
        k_embed = (k * cos) + (rotate_half(k) * sin)
        return q_embed, k_embed, v

    rotate_half = modeling_llama.rotate_half
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", apply_rotary_pos_emb)
    assert not rotary.install(model_of("llama"))

"""Queries, keys and values as one function: taken where attention asks for them one by one, and never twice."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hf_peft_recipes.speed import lora_linear, qkv, rotary
from hf_peft_recipes.speed.lora_linear import MADE, LoraLinear

TOKENS = torch.arange(2, 34).view(2, 16)


def pair(kind="llama", **settings):
    """Return a model with LoRA whose B is not zero, and a copy whose layers are functions of their own."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    settings = {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj"], "lora_dropout": 0.0, **settings}
    plain = get_peft_model(model, LoraConfig(**settings)).train()
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.05)
    fast = copy.deepcopy(plain)
    lora_linear.install(fast)
    return plain, fast


def step(model):
    model.zero_grad()
    loss = model(TOKENS, labels=TOKENS, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def agree(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    assert found[1].keys() == expected[1].keys() and found[1]
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture
def sizes(monkeypatch):
    """Of how many layers each call of the function was."""
    seen, apply = [], LoraLinear.apply
    monkeypatch.setattr(
        LoraLinear, "apply", lambda x, dropped, ways, *some: seen.append(len(ways)) or apply(x, dropped, ways, *some)
    )
    return seen


def attention_of(model, layer=0):
    return model.base_model.model.model.layers[layer].self_attn


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "phi", "starcoder2"])
def test_all_three_are_one_call_and_agree_with_peft(kind, sizes):
    plain, fast = pair(kind)
    assert qkv.install(fast).parts == 2
    agree(step(fast), step(plain))
    assert sizes == [3, 3]
    assert not any(MADE in vars(module) for module in fast.modules())


def test_it_goes_with_rotary_positions_of_our_own_and_into_copies(sizes):
    plain, fast = pair()
    assert rotary.install(fast) and qkv.install(fast)
    before, copied = step(plain), copy.deepcopy(fast)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    agree(step(copied), before)
    assert sizes == [3, 3]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_block_that_is_computed_again_asks_again(reentrant, sizes):
    plain, fast = pair()
    assert qkv.install(fast)
    for model in (plain, fast):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    agree(step(fast), step(plain))
    assert sizes == [3] * (2 if reentrant else 4)
    assert not any(MADE in vars(module) for module in fast.modules())


def test_what_drops_or_is_hooked_goes_layer_by_layer(sizes):
    plain, fast = pair(lora_dropout=0.5)
    assert qkv.install(fast)
    torch.manual_seed(1)
    expected = step(plain)
    torch.manual_seed(1)
    agree(step(fast), expected)
    assert sizes == [1] * 6
    plain, fast = pair()
    assert qkv.install(fast)
    seen = []
    handle = attention_of(fast).k_proj.register_forward_hook(lambda *_: seen.append("k"))
    del sizes[:]
    agree(step(fast), step(plain))
    assert seen == ["k"] and sizes == [1, 1, 1, 3]
    handle.remove()
    step(fast)
    assert sizes == [1, 1, 1, 3, 3, 3]


def test_what_is_evaluated_comes_from_peft(sizes):
    plain, fast = pair()
    assert qkv.install(fast)
    with torch.no_grad():
        assert torch.equal(fast(TOKENS).logits, plain(TOKENS).logits)
    assert not sizes


def test_a_layer_that_is_asked_about_another_input_makes_it_anew(sizes):
    plain, fast = pair()
    assert qkv.install(fast)
    for model in (plain, fast):
        attention = attention_of(model)
        attention.v_proj.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    agree(step(fast), step(plain))
    # The hook is of a layer's own, so all three go alone there.
    assert sizes == [1, 1, 1, 3]
    fast = pair()[1]
    part = attention_of(fast).q_proj
    x = torch.randn(1, 3, 32)
    vars(part)[MADE] = torch.randn(1, 3, 32), None
    assert part(x).shape == x.shape and MADE not in vars(part)


def test_a_second_installation_makes_nothing_twice(sizes):
    plain, fast = pair()
    for path in (rotary, qkv, rotary, qkv):
        assert path.install(fast).parts == 2 and not path.install(fast).left
    agree(step(fast), step(plain))
    assert sizes == [3, 3]


def test_what_it_cannot_take_it_says():
    assert qkv.install(pair(target_modules=["q_proj", "v_proj"])[1]).left == {"no LoRA on k_proj": 2}
    plain, fast = pair()
    assert qkv.install(plain).left == {"its layers are PEFT's own": 2}
    attention = attention_of(fast)
    attention.forward = lambda *some, **named: type(attention).forward(attention, *some, **named)
    taken = qkv.install(fast)
    assert taken.parts == 1 and taken.left == {"another's function stands in the layer's place": 1}
    assert not qkv.install(torch.nn.Linear(2, 2))

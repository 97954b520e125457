"""LoRA's layers and gated blocks as functions of their own: right by hand, as PEFT's, smaller, and left where unknown."""

import copy
import logging
import math
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.speed import Taken, gated_mlp, lora_layers, lora_linear, lora_products, nf4, qkv
from hf_peft_recipes.speed.gated_mlp import GatedMlp
from hf_peft_recipes.speed.lora_layers import why_not_plain
from hf_peft_recipes.speed.lora_linear import LoraLinear
from hf_peft_recipes.speed.lora_products import Way

TOKENS = torch.randint(5, 200, (2, 24), generator=torch.Generator().manual_seed(1))
ALL = {"lora_linear": lora_linear, "gated_mlp": gated_mlp, "qkv": qkv}


def layer(inputs, outputs, bias=False):
    return torch.nn.Linear(inputs, outputs, bias=bias).double().requires_grad_(False)


def tensors(*shapes):
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_the_layers_gradient_is_right_in_float64(bias, drops):
    torch.manual_seed(0)
    way = Way(layer(6, 5, bias), 0.7, torch.float64)
    x, a, b = tensors((2, 4, 6), (3, 6), (5, 3))
    zeroed = torch.rand(x.shape, dtype=x.dtype).round()

    def outcome(x, a, b):
        return LoraLinear.apply(x, x * zeroed if drops else None, [way], a, b)[0]

    expected = way.base(x) + (x * zeroed if drops else x) @ a.T @ b.T * 0.7
    torch.testing.assert_close(outcome(x, a, b), expected)
    assert torch.autograd.gradcheck(outcome, (x, a, b))


def test_the_gradient_of_layers_that_read_one_input_is_right_in_float64():
    torch.manual_seed(0)
    ways = [Way(layer(6, outputs, True), scaling, torch.float64) for outputs, scaling in ((8, 0.7), (4, 0.2), (4, 3.0))]
    given = tensors((2, 4, 6), (3, 6), (8, 3), (2, 6), (4, 2), (1, 6), (4, 1))

    def outcome(x, *adapters):
        return LoraLinear.apply(x, None, ways, *adapters)

    x, *adapters = given
    expected = [
        way.base(x) + x @ a.T @ b.T * way.scaling for way, a, b in zip(ways, adapters[::2], adapters[1::2], strict=True)
    ]
    torch.testing.assert_close(list(outcome(*given)), expected)
    assert torch.autograd.gradcheck(outcome, given)
    # One of them that leads nowhere takes nothing from the others.
    assert torch.autograd.gradcheck(lambda *some: outcome(*some)[::2], given)


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_blocks_gradient_is_right_in_float64(recomputes):
    torch.manual_seed(0)
    ways = tuple(Way(layer(*sizes), 0.7, torch.float64) for sizes in ((6, 9), (6, 9), (9, 6)))
    given = tensors((2, 4, 6), (3, 6), (9, 3), (3, 6), (9, 3), (3, 9), (6, 3))
    assert torch.autograd.gradcheck(lambda x, *adapters: GatedMlp.apply(x, ways, recomputes, *adapters), given)


def test_an_input_that_needs_no_gradient_gets_none():
    way = Way(layer(6, 5), 0.7, torch.float64)
    x, a, b = tensors((4, 6), (3, 6), (5, 3))
    LoraLinear.apply(x.detach(), None, [way], a, b)[0].sum().backward()
    assert x.grad is None and a.grad is not None


def base(**changes):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(MODEL_DIR)
    for name, value in changes.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config).float()


def pair(model=None, dtype=torch.float32, paths=tuple(ALL), **settings):
    """Return a model with LoRA whose B is not zero, and a copy with the faster paths."""
    settings = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", **settings}
    model = base() if model is None else model
    model = model.to(dtype) if dtype else model
    plain = get_peft_model(model, LoraConfig(**settings)).train()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                parameter.data.normal_(0, 0.02, generator=generator)
    fast = copy.deepcopy(plain)
    return plain, fast, {name for name in paths if ALL[name].install(fast)}


def step(model, autocast=None):
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        loss = model(TOKENS, labels=TOKENS, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def off(found, expected):
    """Return the norm of the difference of two sets of gradients, over that of the expected one."""
    norm = math.hypot(*(float(torch.linalg.vector_norm(one)) for one in expected.values()))
    return math.hypot(*(float(torch.linalg.vector_norm(found[name] - expected[name])) for name in expected)) / norm


def agree(plain, fast, tolerance, autocast=None):
    (loss, gradients), (fast_loss, fast_gradients) = step(plain, autocast), step(fast, autocast)
    assert gradients.keys() == fast_gradients.keys() and gradients
    assert all(fast_gradients[name].dtype == gradient.dtype for name, gradient in gradients.items())
    torch.testing.assert_close(fast_loss, loss, rtol=tolerance, atol=0)
    assert off(fast_gradients, gradients) < tolerance
    for name, gradient in gradients.items():
        # A tensor whose own gradient is small is further off by itself.
        torch.testing.assert_close(
            fast_gradients[name], gradient, rtol=0, atol=10 * tolerance * float(gradient.abs().max()), msg=name
        )


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"lora_dropout": 0.3}, {"target_modules": ["q_proj", "down_proj"]}],
    ids=["lora", "rslora", "dropout", "some layers"],
)
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["kept", "recomputed", "re-entrant"])
def test_float32_agrees_with_peft(settings, checkpointing):
    plain, fast, installed = pair(**settings)
    assert installed == (set(ALL) if "target_modules" not in settings else {"lora_linear"})
    for model in (plain, fast) if checkpointing is not None else ():
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    agree(plain, fast, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32 base", "bfloat16 base"])
def test_autocast_is_no_further_from_the_truth_than_peft(dtype):
    plain, fast, installed = pair(dtype=dtype)
    assert installed == set(ALL)
    truth_loss, truth = step(copy.deepcopy(plain).float())
    (loss, gradients), (fast_loss, fast_gradients) = (step(model, torch.bfloat16) for model in (plain, fast))
    assert abs(fast_loss - truth_loss) < 2 * abs(loss - truth_loss) + 1e-3 * truth_loss
    assert off(fast_gradients, truth) < 1.1 * off(gradients, truth) < 0.05


def test_biases_of_the_base_count():
    plain, fast, _ = pair(base(attention_bias=True, mlp_bias=True))
    for model in (plain, fast):
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.fill_(0.1)
    agree(plain, fast, 1e-5)


def test_fifty_steps_have_the_same_curve():
    curves = []
    for model in pair()[:2]:
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
        curve = []
        for _ in range(50):
            curve.append(step(model)[0])
            optimizer.step()
        curves.append(torch.stack(curve))
    assert curves[0][-1] < 0.9 * curves[0][0]
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-4, atol=0)


def saved_bytes(model):
    """Return the bytes of what autograd keeps of a forward pass, weights left out, each storage once."""
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        seen.setdefault(storage.data_ptr(), (storage.nbytes(), tensor))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = model(TOKENS, labels=TOKENS, use_cache=False).loss
    total = sum(size for pointer, (size, _) in seen.items() if pointer not in weights)
    del loss
    return total


def test_who_has_replaced_a_block_or_a_layer_keeps_it(monkeypatch):
    """As liger-kernel gives blocks its own way, before ours is installed."""
    plain = pair()[0]
    block = plain.base_model.model.model.layers[0].mlp
    asked = []

    def theirs(self, x):
        asked.append(self)
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

    fast = copy.deepcopy(plain)
    theirs_in = fast.base_model.model.model.layers[0].mlp
    theirs_in.__dict__["forward"] = theirs.__get__(theirs_in, type(theirs_in))
    layer = fast.base_model.model.model.layers[1].self_attn.q_proj
    layer.__dict__["forward"] = (lambda self, x: asked.append(self) or type(self).forward(self, x)).__get__(layer)
    assert lora_linear.install(fast) and gated_mlp.install(fast)
    agree(plain, fast, 1e-5)
    assert asked == [theirs_in, layer] and "forward" not in vars(block)
    # Ours is known again, in a copy too.
    assert gated_mlp.install(copy.deepcopy(fast)) and why_not_plain(layer)


def test_less_is_kept_for_the_way_back():
    plain, fast, _ = pair(dtype=torch.bfloat16)
    assert saved_bytes(fast) < 0.8 * saved_bytes(plain)


def test_what_is_not_plain_is_left_to_peft():
    gelu = base(hidden_act="gelu")
    assert pair(gelu)[2] == {"lora_linear", "qkv"}
    assert not pair(use_dora=True)[2]
    agree(*pair(use_dora=True)[:2], 1e-6)
    assert not lora_linear.install(base()) and not gated_mlp.install(torch.nn.Linear(2, 2))
    trained = pair()[0]
    for one in trained.parameters():
        one.requires_grad_(True)
    assert lora_linear.install(trained) == Taken(0, Counter({"the base learns": 28}))
    assert lora_linear.install(pair(use_dora=True)[0]) == Taken(0, Counter({"the adapter is a DoraLinearVariant": 28}))


def test_float16_is_left_to_peft(monkeypatch):
    monkeypatch.setattr(LoraLinear, "apply", None)
    monkeypatch.setattr(GatedMlp, "apply", None)
    logits(pair(dtype=torch.float16)[1])


def test_what_is_evaluated_comes_from_peft(monkeypatch):
    plain, fast, _ = pair(dtype=torch.bfloat16)
    monkeypatch.setattr(LoraLinear, "apply", None)
    monkeypatch.setattr(GatedMlp, "apply", None)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(TOKENS).logits, plain(TOKENS).logits)
    with pytest.raises(TypeError), torch.autocast("cpu", torch.bfloat16):
        fast(TOKENS)


def logits(model):
    return model(TOKENS, use_cache=False).logits.detach()


def said(caplog):
    return [record.message.partition(": ")[2] for record in caplog.records if "PEFT's own code" in record.message]


def test_adapters_that_are_switched_or_merged_go_peft_s_way(caplog):
    plain, fast, _ = pair()
    lora_layers._say.cache_clear()
    with plain.disable_adapter(), fast.disable_adapter():
        assert torch.equal(logits(fast), logits(plain))
    for model in (plain, fast):
        torch.manual_seed(4)
        model.add_adapter("other", LoraConfig(r=4, target_modules="all-linear"))
        model.base_model.set_adapter(["default", "other"])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(logits(fast), logits(plain))
    assert said(caplog) == ["the adapter is disabled", "2 adapters are active"]
    for model in (plain, fast):
        model.set_adapter("other")
    agree(plain, fast, 1e-5)
    for model in (plain, fast):
        model.merge_adapter()
    caplog.clear()
    torch.testing.assert_close(logits(fast), logits(plain), rtol=0, atol=0)
    assert said(caplog) == ["the adapter is merged"]
    for model in (plain, fast):
        model.unmerge_adapter()
    merged = [logits(model.merge_and_unload()) for model in (plain, fast)]
    torch.testing.assert_close(*merged)


def test_a_copy_computes_with_its_own_weights():
    _, fast, _ = pair()
    before, copied = logits(fast), copy.deepcopy(fast)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    assert torch.equal(logits(copied), before)


def test_who_hooks_into_a_part_sees_it_run():
    _, fast, _ = pair()
    seen = []
    block = fast.base_model.model.model.layers[0].mlp
    handles = [
        part.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, part in {"act": block.act_fn, "gate": block.gate_proj, "base": block.up_proj.base_layer}.items()
    ]
    logits(fast)
    assert sorted(seen) == ["act", "base", "gate"]
    for handle in handles:
        handle.remove()
    logits(fast)
    assert len(seen) == 3


def one_room(weight, state, dtype):
    """Make a weight whole as a GPU does: in the room of the one before."""
    from bitsandbytes.functional import dequantize_4bit

    room = nf4.buffer(weight.device, state.shape, dtype)
    return room.copy_(dequantize_4bit(weight, state).view(state.shape))


@pytest.mark.parametrize("rooms", ["one", "many"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_four_bits_agree_with_peft(rooms, checkpointing, monkeypatch):
    import bitsandbytes as bnb

    from hf_peft_recipes.four_bit import mend

    if rooms == "one":
        monkeypatch.setattr(nf4, "_buffers", {})
        monkeypatch.setattr(lora_products, "dequantize", one_room)

    model = base()
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            made = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
            )
            made.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
            model.set_submodule(name, made.to("cpu"))
    mend(model)
    model.is_loaded_in_4bit = True
    plain, fast, installed = pair(model, None)
    assert installed == set(ALL)
    for one in (plain, fast) if checkpointing else ():
        one.enable_input_require_grads()
        one.gradient_checkpointing_enable({"use_reentrant": False})
    agree(plain, fast, 1e-5)
    agree(plain, fast, 0.03, autocast=torch.bfloat16)
    assert len(nf4._buffers) == (rooms == "one")

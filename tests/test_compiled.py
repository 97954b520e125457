"""What torch compiles around the faster paths: the same losses and gradients, by the model's own code where it is traced."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.backends.registry import lookup_backend
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.speed import attention, gated_mlp, head_scores, lora_linear, loss_head
from hf_peft_recipes.speed.gated_mlp import GatedMlp
from hf_peft_recipes.speed.head_scores import TileScores, TokenScores
from hf_peft_recipes.speed.lora_linear import LoraLinear

ROW = [5, 1, 40, 18, 2]
POSITIONS = torch.cat([torch.arange(length) for length in ROW])[None]
TOKENS = torch.randint(5, 200, POSITIONS.shape, generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": TOKENS, "position_ids": POSITIONS, "labels": TOKENS, "use_cache": False}


@pytest.fixture
def compiled(monkeypatch):
    """Return a compiler, and what it was given; the tests are run without one elsewhere."""
    graphs, run = [], lookup_backend("aot_eager")

    def backend(graph, inputs):
        graphs.append(graph)
        return run(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    yield lambda function, **options: torch.compile(function, backend=backend, **options), graphs
    torch._dynamo.reset()


def base():
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(MODEL_DIR)
    config.num_hidden_layers = 2
    return AutoModelForCausalLM.from_config(config).float().train()


def with_lora():
    model = get_peft_model(base(), LoraConfig(r=8, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.02)
    return model


def outcome(model, called=None, **named):
    model.zero_grad()
    loss = (model if called is None else called)(**INPUTS, **named).loss
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def agree(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    assert found[1].keys() == expected[1].keys() and found[1]
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_the_whole_model(compiled):
    compiler, graphs = compiled
    plain = with_lora()
    fast = copy.deepcopy(plain)
    assert all(path.install(fast.base_model.model) for path in (lora_linear, gated_mlp, attention))
    agree(outcome(fast, compiler(fast)), outcome(plain))
    assert graphs


def test_layers_and_blocks_give_the_compiler_peft_s_own_code(compiled, monkeypatch):
    compiler, graphs = compiled
    plain = with_lora()
    fast = copy.deepcopy(plain)
    assert lora_linear.install(fast) and gated_mlp.install(fast)
    for layer in fast.base_model.model.model.layers:
        layer.mlp.forward = compiler(layer.mlp.forward, fullgraph=True)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            part = getattr(layer.self_attn, name)
            part.forward = compiler(part.forward)
    monkeypatch.setattr(GatedMlp, "apply", None)
    monkeypatch.setattr(LoraLinear, "apply", None)
    agree(outcome(fast), outcome(plain))
    assert graphs


def test_attention_layers_are_given_the_bounds(compiled, monkeypatch):
    compiler, graphs = compiled
    plain = base()
    fast = copy.deepcopy(plain)
    assert attention.install(fast)
    expected = outcome(plain)
    for layer in fast.model.layers:
        layer.forward = compiler(layer.forward)
    monkeypatch.setattr(attention, "sdpa_mask", None)
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    agree(outcome(fast), expected)
    assert graphs


def test_a_mask_that_is_traced_is_transformers_own(compiled, monkeypatch):
    compiler, graphs = compiled
    plain = base()
    fast = copy.deepcopy(plain)
    assert attention.install(fast)
    expected = outcome(plain)
    monkeypatch.setattr(attention, "read_lengths", None)
    agree(outcome(fast, compiler(fast)), expected)
    assert graphs


@pytest.mark.parametrize("scores", [TokenScores, TileScores])
def test_the_loss_head(compiled, scores, monkeypatch):
    compiler, graphs = compiled
    monkeypatch.setitem(head_scores.SCORES, "cpu", scores)
    plain = base()
    plain.get_output_embeddings().weight.requires_grad_(False)
    fast = copy.deepcopy(plain)
    for model in (plain, fast):
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    assert loss_head.install(fast)
    expected = outcome(plain, fused_lm_head=True)
    agree(outcome(fast, compiler(fast), fused_lm_head=True), expected)
    assert graphs

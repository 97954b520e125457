"""The faster paths give what the unpatched model gives: outputs, losses and gradients, to rounding."""

import copy

import pytest
import torch
from conftest import FAST
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from hf_peft_recipes import get_recipe
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.speed import (
    PATHS,
    attention,
    head_scores,
    head_tokens,
    loss_head,
    serves,
    speed_up,
    tile_width,
    token_scores,
)
from hf_peft_recipes.speed.head_scores import TileScores, TokenScores


def test_speed_off_leaves_the_model_alone_and_the_losses_agree(tmp_path, jsonl):
    keywords = {"dataset": str(jsonl), "max_steps": 4, "logging_steps": 1, **FAST, "evaluation.max_rows": 0}
    records = {
        speed: get_recipe("lora", speed=speed, **keywords).train(tmp_path / speed).record for speed in ("auto", "off")
    }
    assert [records[speed]["speed"] for speed in ("auto", "off")] == [list(PATHS), []]
    losses = [[point["loss"] for point in records[speed]["loss_curve"] if "loss" in point] for speed in ("auto", "off")]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert "by_document" not in "".join(path.read_text() for path in (tmp_path / "auto").glob("*.json"))


def test_rows_filled_up_to_one_length_teach_the_same(tmp_path, jsonl, monkeypatch):
    """What a compiler or a graph wants: TRL fills a row up with documents of one token, which carry no loss."""
    losses, shapes, read = [], [], attention.read_lengths
    monkeypatch.setattr(attention, "read_lengths", lambda *asked: shapes.append(asked[1:3]) or read(*asked))
    for filled in (None, 128):
        keywords = {"dataset": str(jsonl), "max_steps": 3, "logging_steps": 1, **FAST, "evaluation.max_rows": 0}
        keywords |= {"dtype": "float32", "bf16": False, "max_length": 128, "pad_to_multiple_of": filled}
        record = get_recipe("lora", **keywords).train(tmp_path / str(filled), progress=False).record
        losses.append([point["loss"] for point in record["loss_curve"] if "loss" in point])
        unlike, shapes = len(set(shapes)), []
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and unlike == 1
    assert record["speed"] == list(PATHS)


@pytest.mark.parametrize("objective", ["reward", "classify", "orpo"])
def test_objectives_that_do_not_pack_take_the_layers_paths(objective, tmp_path):
    losses = []
    for speed in ("auto", "off"):
        numbers = {"dtype": "float32", "bf16": False}
        keywords = {"max_steps": 3, "logging_steps": 1, **FAST, **numbers, "evaluation.max_rows": 8}
        record = get_recipe(f"lora+{objective}", speed=speed, **keywords).train(tmp_path / speed, progress=False).record
        paths = [name for name, path in PATHS.items() if not path.of_packed]
        assert record["speed"] == (paths if speed == "auto" else [])
        losses.append([point["loss"] for point in record["loss_curve"] if "loss" in point])
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("objective", ["dpo", "kto", "grpo", "rloo"])
def test_objectives_that_hold_likelihoods_against_others_take_none(objective, tmp_path):
    """A reference is computed without a gradient, by upstream's code: what is held against it is too."""
    keywords = {"max_steps": 1, **FAST, "evaluation.max_rows": 0}
    assert get_recipe(f"lora+{objective}", **keywords).train(tmp_path, progress=False).record["speed"] == []


@pytest.fixture
def heads():
    """Return a model with TRL's fused head, its head frozen, and a copy that takes our path through it."""
    config = AutoModelForCausalLM.from_pretrained(MODEL_DIR).config
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config).float().train()
    plain.get_output_embeddings().weight.requires_grad_(False)
    fast = copy.deepcopy(plain)
    for model in (plain, fast):
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    assert loss_head.install(fast)
    return plain, fast


def masked_rows(share):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(5, 200, (2, 90), generator=generator)
    labels = tokens.masked_fill(torch.rand(tokens.shape, generator=generator) < share, -100)
    return {"input_ids": tokens, "labels": labels}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["all carry loss", "half", "none"])
@pytest.mark.parametrize("at_a_time", [1, 7, 128])
@pytest.mark.parametrize("scores", [TokenScores, TileScores])
def test_the_head_scores_as_trls_does(heads, share, at_a_time, scores, monkeypatch):
    monkeypatch.setitem(head_scores.SCORES, "cpu", scores)
    # Of the vocabulary for the first, of the tokens for the second.
    monkeypatch.setattr(token_scores, "tile_width", lambda *_: at_a_time)
    monkeypatch.setattr(head_scores, "head_tokens", lambda *_: at_a_time)
    inputs, found = masked_rows(share), []
    for model in heads:
        output = model(**inputs, fused_lm_head=True)
        # A weight a token, as losses such as DFT's have it.
        weights = torch.linspace(0.5, 2, output.log_probs.numel()).view_as(output.log_probs)
        (-output.log_probs * weights).mean().backward()
        found.append((output, {name: tensor.grad for name, tensor in model.named_parameters() if tensor.requires_grad}))
    (plain, gradients), (fast, fast_gradients) = found
    for score in ("log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(fast[score], plain[score], atol=2e-5, rtol=1e-5, msg=score)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_the_heads_gradient_is_right_in_float64():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 6, dtype=torch.float64, requires_grad=True), torch.randn(11, 6, dtype=torch.float64)
    targets = torch.tensor([0, 10, 3, 3, 7])
    assert torch.autograd.gradcheck(lambda x: TokenScores.apply(x, weight, targets)[0], hidden)


def test_a_row_without_labels_has_a_loss_of_zero(heads):
    losses = [model(**masked_rows(1.0), fused_lm_head=True).loss for model in heads]
    assert [float(loss) for loss in losses] == [0, 0]
    losses[1].backward()


def test_a_head_that_no_kernel_is_known_for_stays_trls(heads, monkeypatch):
    monkeypatch.setitem(head_scores.SCORES, "cpu", TileScores)
    tile = head_scores.chunked_logprob._forward_tile
    monkeypatch.setattr(head_scores.chunked_logprob, "_forward_tile", lambda *inputs: tile(*inputs))
    add_fused_lm_head(heads[0])
    assert not loss_head.install(heads[0])


def test_a_compiled_model_takes_the_paths_that_stand_outside(heads):
    paths, (told,) = speed_up(heads[0], "cpu", compiled=True)
    assert paths == ["loss_head"] and "lora_linear (torch.compile" in told and "loss_head" not in told
    assert all(serves(path, "cuda") for path in PATHS) and not any(serves(path, "mps") for path in PATHS)


def test_logits_at_a_time():
    assert [tile_width(*sizes) for sizes in ((470, 49152), (940, 49152), (1, 1000), (10**6, 50257))] == [
        4096, 2176, 1024, 256
    ]  # fmt: skip
    assert [head_tokens(vocabulary) for vocabulary in (32768, 49152, 128256, 151936, 2**24)] == [
        4096, 2688, 1024, 768, 128
    ]  # fmt: skip


def test_the_head_keeps_generation_and_plain_calls_as_they_are(heads):
    inputs = masked_rows(0.5)
    plain, fast = (model(**inputs) for model in heads)
    torch.testing.assert_close(fast.loss, plain.loss)
    tokens = [model.generate(inputs["input_ids"][:, :5], max_new_tokens=6, do_sample=False) for model in heads]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("why", ["learns", "capped", "scaled", "has a bias"])
def test_a_head_that_is_not_plain_and_frozen_stays_trls(why):
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    model.get_output_embeddings().weight.requires_grad_(why == "learns")
    if why == "has a bias":
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    changes = {"capped": {"final_logit_softcapping": 30.0}, "scaled": {"logits_scaling": 8.0}}
    for name, value in changes.get(why, {}).items():
        setattr(model.config, name, value)
    add_fused_lm_head(model)
    assert not loss_head.install(model)

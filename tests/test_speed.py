"""The faster paths give what the unpatched model gives: outputs, losses and gradients, to rounding."""

import copy

import pytest
import torch
from conftest import FAST
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from hf_peft_recipes import get_recipe
from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.speed import PATHS, loss_head, speed_up
from hf_peft_recipes.speed.attention import NAME, STEP, document_lengths, lay_out
from hf_peft_recipes.speed.causal_attention import LONGEST, attend_causally

ROW = [5, 1, 40, 18, 2]


def block_diagonal(lengths, window=None):
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (ids[:, None] == ids) & torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    if window:
        mask &= torch.ones_like(mask).triu(1 - window)
    return mask[None, None]


@pytest.mark.parametrize("lengths", [[1], [7], [1, 1, 1], ROW])
def test_document_lengths(lengths):
    assert document_lengths(block_diagonal(lengths)) == lengths


@pytest.mark.parametrize("lengths", [[1], [32], [33, 32, 1], ROW, [7] * 9, [100, 64, 3, 65]])
def test_a_row_is_laid_out_and_back(lengths):
    layout = lay_out(lengths, torch.device("cpu"))
    tokens = torch.arange(sum(lengths))
    assert torch.equal(layout.take[layout.give], tokens)
    assert sorted([*layout.give.tolist(), *layout.empty.tolist()]) == list(range(len(layout.take)))
    assert len(layout.groups) == len({-(-length // STEP) for length in lengths})
    assert sum(number * room for number, room in layout.groups) == len(layout.take) < len(tokens) + STEP * len(lengths)


def test_the_plan_knows_the_step():
    from hf_peft_recipes.plan.job import DOCUMENT_STEP

    assert DOCUMENT_STEP == STEP


def test_documents_of_about_one_length_go_together(models, monkeypatch):
    from hf_peft_recipes.speed import attention

    shapes, kernel = [], attention.attend_causally
    monkeypatch.setattr(attention, "attend_causally", lambda q, *a: shapes.append(q.shape) or kernel(q, *a))
    for lengths, calls in ((ROW, [(4, 32), (1, 64)]), ([50], [(1, 50)])):
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        models[1](torch.randint(5, 200, positions.shape), position_ids=positions, use_cache=False)
        if len(lengths) > 1:
            assert [(shape[0], shape[2]) for shape in shapes[: len(calls)]] == calls


def not_documents():
    window = block_diagonal([12], window=4)
    short_window = block_diagonal([8, 12], window=9)
    padded = block_diagonal([3, 5])
    padded[..., 0] = False
    both_ways = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    crossing = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.bool)[None, None]
    with_cache = torch.ones(1, 1, 2, 5, dtype=torch.bool)
    two_rows = block_diagonal([3, 2]).expand(2, 1, 5, 5)
    additive = torch.zeros(1, 1, 4, 4)
    return locals()


@pytest.mark.parametrize(("what", "mask"), not_documents().items())
def test_any_other_mask_is_left_to_transformers(what, mask):
    assert document_lengths(mask) is None, what


@pytest.fixture(params=["heads", "grouped", "one_group"])
def models(request):
    groups = {"heads": 4, "grouped": 2, "one_group": 1}[request.param]
    torch.manual_seed(0)
    config = AutoModelForCausalLM.from_pretrained(MODEL_DIR).config
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, groups, 16
    plain = AutoModelForCausalLM.from_config(config).float().train()
    fast = copy.deepcopy(plain)
    assert speed_up(fast, "cpu") == ["document_attention", "rotary"]
    assert (plain.config._attn_implementation, fast.config._attn_implementation) == ("sdpa", NAME)
    return plain, fast


def losses_and_gradients(model, inputs, **keywords):
    model.zero_grad()
    output = model(**inputs, **keywords)
    output.loss.backward()
    return output.logits, {name: tensor.grad.clone() for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_give_the_same_losses_and_gradients(models, checkpointing):
    tokens = torch.randint(5, 200, (1, sum(ROW)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in ROW])[None]
    inputs = {"input_ids": tokens, "position_ids": positions, "labels": tokens, "use_cache": False}
    found = []
    for model in models:
        if checkpointing:
            model.gradient_checkpointing_enable()
        found.append(losses_and_gradients(model, inputs))
    (logits, gradients), (fast_logits, fast_gradients) = found
    torch.testing.assert_close(fast_logits, logits, atol=1e-5, rtol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_packed_rows_really_go_by_document(models, monkeypatch):
    from hf_peft_recipes.speed import attention

    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    tokens = torch.randint(5, 200, (1, sum(ROW)))
    models[1](tokens, position_ids=torch.cat([torch.arange(length) for length in ROW])[None], use_cache=False)


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("tokens", [1, 32, 200, LONGEST, LONGEST + 1])
def test_attention_in_bfloat16_is_no_further_from_the_truth_than_torchs(tokens, scaling):
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randn(2, heads, tokens, 16, generator=generator).bfloat16() for heads in (6, 2, 2)]
    outer = torch.randn(2, 6, tokens, 16, generator=generator).bfloat16()

    def gradients(attend, dtype):
        leaves = [part.to(dtype).requires_grad_() for part in parts]
        out = attend(*leaves)
        return out, *torch.autograd.grad(out, leaves, outer.to(dtype))

    def torchs(q, k, v):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)

    def errors(found):
        return torch.tensor([(one.double() - true).norm() for one, true in zip(found, truth, strict=True)])

    truth = gradients(torchs, torch.float64)
    ours = gradients(lambda q, k, v: attend_causally(q, k, v, 0.0, scaling), torch.bfloat16)
    assert all(one.dtype == torch.bfloat16 for one in ours)
    assert (errors(ours) <= 1.05 * errors(gradients(torchs, torch.bfloat16)) + 1e-6).all()
    assert (errors(ours) < 0.01 * torch.tensor([one.norm() for one in truth]) + 1e-6).all()


def test_padded_rows_and_generation_are_as_before(models):
    tokens = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9])
    plain, fast = (model.eval() for model in models)
    with torch.no_grad():
        torch.testing.assert_close(fast(tokens, attention_mask=mask).logits, plain(tokens, attention_mask=mask).logits)
    texts = [model.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False) for model in (plain, fast)]
    assert torch.equal(*texts)


def test_a_model_on_eager_attention_stays_as_it_is():
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, attn_implementation="eager")
    assert speed_up(model, "cpu") == ["rotary"]
    assert model.config._attn_implementation == "eager"


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
@pytest.mark.parametrize("width", [1, 7, 500])
def test_the_head_scores_as_trls_does(heads, share, width, monkeypatch):
    monkeypatch.setattr(loss_head, "tile_width", lambda tokens, vocabulary: min(vocabulary, width))
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
    assert torch.autograd.gradcheck(lambda x: loss_head.TokenScores.apply(x, weight, targets)[0], hidden)


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

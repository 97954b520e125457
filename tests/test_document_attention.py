"""Packed rows attend a document at a time, by whatever kernel, as the model does with a dense mask: nothing leaks."""

import copy
import inspect

import pytest
import torch
from plan_samples import small_config
from torch.nn.functional import scaled_dot_product_attention
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, masking_utils
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    padding_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from hf_peft_recipes.embedded import MODEL_DIR
from hf_peft_recipes.plan.shapes import ARCHITECTURES
from hf_peft_recipes.speed import ATTENTION, ATTENTION_BLOCK, attention, attention_kernel, speed_up
from hf_peft_recipes.speed.attention import NAME, by_document, documents, places, varlen
from hf_peft_recipes.speed.attention.by_block import ByBlock, attend_by_block
from hf_peft_recipes.speed.attention.documents import documents_of, read_lengths, write_bounds, write_mask
from hf_peft_recipes.speed.attention.layout import STEP, lay_out

ROW = [5, 1, 40, 18, 2]


def packed(*rows, within=causal_mask_function):
    """Return what transformers (5.23) makes masks of packed rows of, `within` being what a document sees of itself."""
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    ids = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in rows])

    def sees(row, head, query, key):
        return (ids[row, query] == ids[row, key]) & within(row, head, positions[row, query], positions[row, key])

    return sees


def read(sees, rows, tokens):
    return read_lengths(sees, rows, tokens, "cpu")


@pytest.mark.parametrize("row", [[1], [7], [1, 1, 1], ROW, [64, 64], [1] * 33 + [95]])
def test_lengths_are_read_from_what_makes_the_mask(row):
    assert read(packed(row), 1, sum(row)) == row
    assert read(packed(row, [sum(row)]), 2, sum(row)) == [*row, sum(row)]


@pytest.mark.parametrize("rows", [[ROW], [[3, 2], [1, 4]], [[1]]])
def test_the_bounds_stand_for_the_mask_that_transformers_makes(rows):
    tokens, lengths = sum(rows[0]), [length for row in rows for length in row]
    expected = sdpa_mask(len(rows), tokens, tokens, mask_function=packed(*rows), allow_is_causal_skip=False)
    assert torch.equal(write_mask(write_bounds(lengths, "cpu"), len(rows)), expected)


def not_documents():
    left_out = torch.ones(1, 12, dtype=torch.bool)
    left_out[0, 3] = False
    one_pair = torch.zeros(12, 12, dtype=torch.bool)
    return {
        "window": (packed([12], within=sliding_window_causal_mask_function(4)), 12),
        "window of nearly all": (packed([3, 12], within=sliding_window_causal_mask_function(11)), 15),
        "a key left out": (and_masks(packed([12]), padding_mask_function(left_out)), 12),
        "the first key left out": (and_masks(packed([12]), padding_mask_function(left_out.roll(-3))), 12),
        "both ways": (packed([4, 8], within=bidirectional_mask_function), 12),
        "whatever the rows": (bidirectional_mask_function, 12),
        "one block both ways": (lambda b, h, q, k: causal_mask_function(b, h, q, k) | ((q // 4 == 1) & (k // 4 == 1)), 12),
        "a token not itself": (lambda b, h, q, k: (k < q) | ((q == 0) & (k == 0)), 12),
        "nothing": (lambda b, h, q, k: one_pair[q, k], 12),
        "an earlier document too": (lambda b, h, q, k: packed([4, 4, 4])(b, h, q, k) | ((q // 4 == 2) & (k // 4 == 0)), 12),
    }  # fmt: skip


@pytest.mark.parametrize(("sees", "tokens"), not_documents().values(), ids=not_documents())
def test_any_other_mask_is_left_to_transformers(sees, tokens):
    assert read(sees, 1, tokens) is None
    asked = {"mask_function": sees, "allow_is_causal_skip": False}
    assert torch.equal(attention.make_mask(1, tokens, tokens, **asked), sdpa_mask(1, tokens, tokens, **asked))


def test_windows_that_hide_nothing_and_chunks_are_documents():
    assert read(packed([3, 12], within=sliding_window_causal_mask_function(12)), 1, 15) == [3, 12]
    assert read(packed([3, 12], within=chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.long))), 1, 15) == [
        3,
        8,
        4,
    ]


@pytest.mark.parametrize(
    "asked",
    [
        {"allow_is_causal_skip": True},
        {"attention_mask": torch.ones(1, 6, dtype=torch.bool)},
        {"use_vmap": True},
        {"q_offset": 2, "kv_offset": 0},
    ],
    ids=["plain", "padded", "mapped", "beside a cache"],
)
def test_what_may_be_no_packed_row_goes_the_usual_way(asked, monkeypatch):
    monkeypatch.setattr(attention, "read_lengths", None)
    asked = {"mask_function": causal_mask_function, "allow_is_causal_skip": False, **asked}
    found, expected = (make(1, 6, 6, **asked) for make in (attention.make_mask, sdpa_mask))
    assert found is expected is None or torch.equal(found, expected)


def test_a_mask_is_told_from_bounds():
    assert documents_of(None) is None and documents_of(torch.ones(1, 1, 3, 3, dtype=torch.bool)) is None
    bounds = write_bounds(ROW, "cpu")
    assert documents_of(bounds).lengths == documents_of(bounds.clone()).lengths == ROW
    assert documents_of(bounds) is documents_of(bounds)
    assert bounds.dtype == torch.int32 and bounds.tolist() == [0, 5, 6, 46, 64, 66]


def test_what_is_known_of_bounds_goes_with_them():
    before = len(documents._by_bounds)
    bounds = write_bounds(ROW, "cpu")
    documents_of(bounds).layout(bounds.device)
    assert len(documents._by_bounds) == before + 1
    del bounds
    assert len(documents._by_bounds) == before


@pytest.mark.parametrize("lengths", [[1], [32], [33, 32, 1], ROW, [7] * 9, [100, 64, 3, 65], [70] + [1] * 50])
def test_a_row_is_laid_out_and_back(lengths):
    layout = lay_out(lengths, torch.device("cpu"))
    tokens = torch.arange(sum(lengths))
    assert torch.equal(layout.take[layout.give], tokens)
    assert sorted([*layout.give.tolist(), *layout.empty.tolist()]) == list(range(len(layout.take)))
    assert len(layout.groups) == len({1 if length == 1 else -(-length // STEP) * STEP for length in lengths})
    assert sum(number * room for number, room in layout.groups) == len(layout.take) < len(tokens) + STEP * len(lengths)


def test_the_plan_knows_the_step():
    from hf_peft_recipes.plan.make_job import DOCUMENT_STEP

    assert DOCUMENT_STEP == STEP


def test_kernels_by_device_and_precision():
    kinds = [("cuda", 2), ("cpu", 2), ("cuda", 4), ("cpu", 4), ("mps", 2)]
    assert [attention_kernel(*kind) for kind in kinds] == ["varlen", "by_block", *["by_document"] * 3]


def by_documents(q, k, v, bounds, scale):
    """Return attention by SDPA, one document after the other."""
    pieces = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        part = (one[start:end].transpose(0, 1)[None] for one in (q, k, v))
        out = scaled_dot_product_attention(*part, is_causal=True, scale=scale, enable_gqa=True)
        pieces.append(out[0].transpose(0, 1))
    return torch.cat(pieces)


def gradients_by_documents(g, q, k, v, bounds, scale):
    """Return its gradients, by hand: an operator's own kernel is below autograd."""
    groups, scale, found = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5 if scale is None else scale, []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        dout, query = (one[start:end].transpose(0, 1) for one in (g, q))
        key, value = (one[start:end].transpose(0, 1).repeat_interleave(groups, 0) for one in (k, v))
        hidden = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        p = (query @ key.mT * scale).masked_fill(hidden, -torch.inf).softmax(-1)
        by_p = dout @ value.mT
        by_scores = p * (by_p - (by_p * p).sum(-1, keepdim=True)) * scale
        by_key, by_value = (
            one.unflatten(0, (-1, groups)).sum(1) for one in (by_scores.mT @ query, p.mT @ dout)
        )  # fmt: skip
        found.append([one.transpose(0, 1) for one in (by_scores @ key, by_key, by_value)])
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


@pytest.fixture
def on_varlen(monkeypatch):
    """Let a CPU's packed rows go to torch's kernel, which gets an implementation there; return its calls."""
    calls = []

    def forward(q, k, v, bounds, keys, longest, longest_key, causal, scale, window=None, *_):
        assert bounds.dtype == torch.int32 and bounds is keys and causal and window in (None, [-1, 0])
        assert longest == longest_key == bounds.diff().max() and q.dtype == k.dtype == v.dtype
        calls.append(bounds)
        with torch.no_grad():
            out = by_documents(q, k, v, bounds, scale)
        return out, q.new_zeros(q.shape[1], len(q), dtype=torch.float32), torch.zeros(2, dtype=torch.uint64)

    def backward(g, q, k, v, out, sums, bounds, keys, longest, longest_key, causal, state, scale=None, window=None):
        return gradients_by_documents(g, q, k, v, bounds, scale)

    import torch.nn.attention.varlen

    with torch.library._scoped_library("torch_attn", "IMPL") as library:
        library.impl("_varlen_attn", forward, "CPU")
        library.impl("_varlen_attn_backward", backward, "CPU")
        for item_bytes in (2, 4):
            monkeypatch.setitem(ATTENTION, ("cpu", item_bytes), "varlen")
        yield calls


@pytest.fixture(params=["heads", "grouped", "one_group"])
def models(request):
    groups = {"heads": 4, "grouped": 2, "one_group": 1}[request.param]
    torch.manual_seed(0)
    config = AutoModelForCausalLM.from_pretrained(MODEL_DIR).config
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, groups, 16
    plain = AutoModelForCausalLM.from_config(config).float().train()
    fast = copy.deepcopy(plain)
    assert speed_up(fast, "cpu").paths == ["document_attention", "rotary"]
    assert (plain.config._attn_implementation, fast.config._attn_implementation) == ("sdpa", NAME)
    return plain, fast


def inputs_of(*rows):
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    tokens = torch.randint(5, 200, positions.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": tokens, "position_ids": positions, "labels": tokens, "use_cache": False}


def logits_and_gradients(model, inputs):
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output.logits, {name: tensor.grad.clone() for name, tensor in model.named_parameters()}


def agree(models, inputs):
    (logits, gradients), (fast_logits, fast_gradients) = (logits_and_gradients(model, inputs) for model in models)
    torch.testing.assert_close(fast_logits, logits, atol=1e-5, rtol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.fixture
def no_dense_mask(monkeypatch):
    monkeypatch.setattr(attention, "sdpa_mask", None)
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["kept", "recomputed", "re-entrant"])
@pytest.mark.parametrize("rows", [[ROW], [[40, 26], [5, 60, 1]]], ids=["one row", "two rows"])
def test_packed_rows_give_the_same_logits_and_gradients(models, checkpointing, rows, no_dense_mask):
    for model in models if checkpointing is not None else ():
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    agree(models, inputs_of(*rows))


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["kept", "recomputed", "re-entrant"])
@pytest.mark.parametrize("rows", [[ROW], [[40, 26], [5, 60, 1]]], ids=["one row", "two rows"])
def test_torchs_kernel_gives_them_too(models, checkpointing, rows, on_varlen, no_dense_mask):
    for model in models if checkpointing is not None else ():
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    agree(models, inputs_of(*rows))
    layers = models[1].config.num_hidden_layers
    assert len(on_varlen) == layers * (1 if checkpointing is None else 2)
    # Read once, and the same tensor for every layer.
    assert len({id(bounds) for bounds in on_varlen}) == 1
    assert on_varlen[0].tolist() == [0, *torch.tensor([n for row in rows for n in row]).cumsum(0).tolist()]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_that_is_planned_gives_what_it_gave(kind, no_dense_mask):
    values = small_config(kind)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind].from_dict(values)).float().train()
    fast = copy.deepcopy(plain)
    assert attention.install(fast)
    found, expected = (model(**inputs_of(ROW)).logits for model in (fast, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["varlen", "by_document"])
def test_no_document_sees_another(models, kernel, request, no_dense_mask):
    if kernel == "varlen":
        request.getfixturevalue("on_varlen")
    inputs = inputs_of(ROW)
    apart = inputs_of([40])["input_ids"]
    with torch.no_grad():
        before = models[1](**inputs).logits
        # Everything but the third document becomes something else.
        inputs["input_ids"][0, :6] = 3
        inputs["input_ids"][0, 46:] = 4
        after = models[1](**inputs).logits
        inputs["input_ids"][0, 6:46] = apart
        alone = models[0](apart, use_cache=False).logits
        assert torch.equal(before[0, 6:46], after[0, 6:46])
        torch.testing.assert_close(models[1](**inputs).logits[0, 6:46], alone[0], atol=1e-5, rtol=1e-4)


def test_under_autocast_the_kernel_gets_one_precision(models, on_varlen, no_dense_mask):
    inputs = inputs_of(ROW)
    found = []
    for model in models:
        with torch.autocast("cpu", torch.bfloat16):
            found.append(model(**inputs).logits)
    # Rotated queries are float32 there, values are not.
    assert on_varlen
    torch.testing.assert_close(*found, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("why", ["dropout", "wide heads", "odd heads", "no kernel"])
def test_what_torchs_kernel_cannot_goes_by_document(why, on_varlen, monkeypatch):
    size = {"wide heads": 264, "odd heads": 12}.get(why, 16)
    query, key, value = (torch.randn(1, heads, 6, size) for heads in (4, 2, 2))
    if why == "no kernel":
        monkeypatch.setattr(varlen, "_options", frozenset)
    bounds = write_bounds([4, 2], "cpu")
    module = torch.nn.Module()
    out, _ = attention.attend(module, query, key, value, bounds, dropout=1e-9 if why == "dropout" else 0.0)
    assert not on_varlen and out.shape == (1, 6, 4, size)
    mask = write_mask(bounds, 1)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("version", ["2.10", "2.11", "2.13"])
def test_torchs_function_is_called_as_its_version_wants(version, monkeypatch):
    asked = []

    def of_210(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        asked.append({"is_causal": is_causal})
        return query

    def of_211(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):  # fmt: skip
        asked.append({"scale": scale, "window_size": window_size})
        return query

    def of_213(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):  # fmt: skip
        asked.append({"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa})
        return query

    function = {"2.10": of_210, "2.11": of_211, "2.13": of_213}[version]
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", function)
    takes = frozenset(inspect.signature(function).parameters)
    monkeypatch.setattr(varlen, "_options", lambda: takes)
    query, key = torch.zeros(6, 4, 16), torch.zeros(6, 2, 16)
    assert varlen.can_attend_varlen(query, key, key, 0.0, 0.25)
    # Without a way to say it, only torch's own scale will do.
    assert varlen.can_attend_varlen(query, key, key, 0.0, 0.5) is (version != "2.10")
    varlen.attend_varlen(query, key, key, write_bounds([6], "cpu"), 6, 0.25)
    expected = {
        "2.10": {"is_causal": True}, "2.11": {"scale": 0.25, "window_size": (-1, 0)},
        "2.13": {"scale": 0.25, "window_size": (-1, 0), "enable_gqa": True},
    }  # fmt: skip
    assert asked == [expected[version]]


def test_documents_of_about_one_length_go_together(models, monkeypatch):
    shapes, kernel = [], by_document._attend
    monkeypatch.setattr(by_document, "_attend", lambda q, *others: shapes.append(q.shape) or kernel(q, *others))
    models[1](**inputs_of(ROW))
    assert [(shape[0], shape[2]) for shape in shapes[:3]] == [(1, 1), (3, 32), (1, 64)]


def test_other_scores_get_the_mask_that_the_bounds_stand_for(monkeypatch):
    given = []
    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda *inputs, **named: given.append(inputs[4]) or (0, None)
    )
    query = torch.randn(1, 2, 6, 8)
    attention.attend(None, query, query, query, write_bounds([4, 2], "cpu"), position_bias=torch.zeros(1))
    assert torch.equal(given[0], sdpa_mask(1, 6, 6, mask_function=packed([4, 2]), allow_is_causal_skip=False))


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
    assert speed_up(model, "cpu").paths == ["rotary"]
    assert model.config._attn_implementation == "eager"


def test_a_model_that_looks_into_its_masks_stays_as_it_is():
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    kind = type(model.model.layers[0].self_attn)

    class Looking(kind):
        def forward(self, hidden_states, attention_mask=None, **others):
            if attention_mask is not None:
                attention_mask = attention_mask[..., : hidden_states.shape[1]]
            return super().forward(hidden_states, attention_mask=attention_mask, **others)

    model.model.layers[0].self_attn.__class__ = Looking
    assert not attention.install(model)
    assert model.config._attn_implementation == "sdpa"


def test_transformers_still_tells_what_the_masks_are_read_from():
    asked = inspect.signature(masking_utils.sdpa_mask).parameters
    assert {"mask_function", "allow_is_causal_skip", "attention_mask", "use_vmap", "q_offset", "kv_offset"} <= set(
        asked
    )


def _attention(heads, key_heads, lengths, size, sharpness=1.0):
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randn(sum(lengths), some, size, generator=generator) for some in (heads, key_heads, key_heads)]
    parts[0] *= sharpness
    outer = torch.randn(sum(lengths), heads, size, generator=generator).bfloat16()
    return [part.bfloat16() for part in parts], outer


def _gradients(attend, parts, outer, dtype):
    leaves = [part.to(dtype).requires_grad_() for part in parts]
    out = attend(*leaves)
    return out, *torch.autograd.grad(out, leaves, outer.to(dtype))


def _one_by_one(lengths, scaling):
    def attend(*parts):
        rows = (part.transpose(0, 1)[None].split(lengths, 2) for part in parts)
        outs = [
            scaled_dot_product_attention(*row, is_causal=True, scale=scaling, enable_gqa=True)
            for row in zip(*rows, strict=True)
        ]
        return torch.cat(outs, 2)[0].transpose(0, 1)

    return attend


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("lengths", [[1], [32], [200], [3 * ATTENTION_BLOCK + 1], [9, 1, 140, 9, 270], [40] * 7])
@pytest.mark.parametrize("heads", [(6, 2), (3, 3), (4, 1)])
def test_attention_by_block_is_attention(lengths, scaling, heads, monkeypatch):
    monkeypatch.setattr(places, "SCORES", 3 * ATTENTION_BLOCK * 200)
    parts, outer = _attention(*heads, lengths, 16)
    parts = [part.double() for part in parts]
    layout = lay_out(lengths, torch.device("cpu"))
    truth = _gradients(_one_by_one(lengths, scaling), parts, outer, torch.float64)
    found = _gradients(lambda *three: attend_by_block(*three, layout, scaling), parts, outer, torch.float64)
    for one, true in zip(found, truth, strict=True):
        torch.testing.assert_close(one, true, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sharpness", [1.0, 6.0])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("lengths", [[1], [32] * 4, [200], [600, 70, 5]])
def test_attention_in_bfloat16_is_as_near_to_the_truth_as_torchs(lengths, scaling, sharpness):
    parts, outer = _attention(6, 2, lengths, 16, sharpness)
    layout = lay_out(lengths, torch.device("cpu"))

    def errors(found):
        return torch.tensor([(one.double() - true).norm() for one, true in zip(found, truth, strict=True)])

    truth = [one.detach() for one in _gradients(_one_by_one(lengths, scaling), parts, outer, torch.float64)]
    ours = _gradients(lambda *three: attend_by_block(*three, layout, scaling), parts, outer, torch.bfloat16)
    torchs = errors(_gradients(_one_by_one(lengths, scaling), parts, outer, torch.bfloat16))
    assert all(one.dtype == torch.bfloat16 for one in ours)
    # Scores are rounded once, less the logarithm of their sum: by little where attention is sharp.
    assert errors(ours)[1:].norm() <= (1.5 if sharpness == 1 else 1.2) * torchs[1:].norm()
    assert (errors(ours) < 0.01 * torch.tensor([one.norm() for one in truth]) + 1e-6).all()


def test_what_is_in_a_place_that_is_left_empty_reaches_no_gradient():
    parts, outer = _attention(2, 1, [3, 30, 5], 16, sharpness=200.0)
    layout = lay_out([3, 30, 5], torch.device("cpu"))
    assert len(layout.empty)
    found = _gradients(lambda *three: attend_by_block(*three, layout, None), parts, outer, torch.bfloat16)
    assert all(one.isfinite().all() for one in found)


def test_a_pretrained_model_in_bfloat16_is_as_near_to_the_truth(monkeypatch):
    asked, apply = [], ByBlock.apply
    monkeypatch.setattr(ByBlock, "apply", lambda *inputs: asked.append(0) or apply(*inputs))
    plain = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.bfloat16).train()
    truth, fast = copy.deepcopy(plain).double(), copy.deepcopy(plain)
    assert attention.install(fast)
    found = [logits_and_gradients(model, inputs_of([5, 40, 150, 60, 1]))[1] for model in (truth, plain, fast)]
    whole, upstream, ours = (torch.cat([one.double().flatten() for one in each.values()]) for each in found)
    assert len(asked) == plain.config.num_hidden_layers
    assert torch.dist(ours, whole) <= 1.05 * torch.dist(upstream, whole)


@pytest.mark.parametrize("why", ["float16", "dropout"])
def test_what_goes_by_no_block_goes_by_document(why, monkeypatch):
    monkeypatch.setattr(ByBlock, "apply", None)
    asked = []
    monkeypatch.setattr(attention, "attend_by_document", lambda q, *others: asked.append(others[-2]) or q)
    dtype = torch.float16 if why == "float16" else torch.bfloat16
    query, key = torch.randn(1, 4, 8, 16, dtype=dtype), torch.randn(1, 2, 8, 16, dtype=dtype)
    attention.attend(None, query, key, key, write_bounds([5, 3], "cpu"), dropout=0.1 * (why == "dropout"))
    assert asked == [0.1 * (why == "dropout")]

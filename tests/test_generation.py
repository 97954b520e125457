"""Drawing answers: from the right distribution, the same whatever the batches, each token at the price of one pass."""

import json
import sys
import time
import types

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    GPT2Config,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from hf_peft_recipes.data import Renderer
from hf_peft_recipes.embedded import DATA_DIR
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.generation import Served, decoding, generate, make_policy, sampling
from hf_peft_recipes.generation.divergence import WithoutAdapter, measure
from hf_peft_recipes.generation.policy import TransformersPolicy
from hf_peft_recipes.generation.settings import names
from hf_peft_recipes.models import load_base, load_tokenizer, stop_ids

FULL = {"dtype": "float32"}
SAMPLING = {"temperature": 1.4, "top_p": 0.97, "repetition_penalty": 1.1, "max_new_tokens": 12}
ONE_BY_ONE = 1
"""A budget that lets in one answer at a time."""


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(None)


@pytest.fixture
def model():
    return load_base(AutoModelForCausalLM, FULL, None)


@pytest.fixture
def lora(model):
    """Return the embedded model with an adapter that does something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    made = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return made.eval()


@pytest.fixture(scope="module")
def conversations():
    rows = (DATA_DIR / "test.jsonl").read_text().splitlines()[:9]
    return [({"role": "user", "content": json.loads(row)["prompt"]},) for row in rows]


@pytest.fixture
def prompts(tokenizer, conversations):
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id], "auto", "\n")
    return [renderer.serve(turns) for turns in conversations]


def drawn(model, prompts, samples=3, options=SAMPLING, seed=7, stops=(4,), **others):
    found = dict(sampling.sample(model, prompts, samples, options, seed, stops, 0, **others))
    assert sorted(found) == list(range(len(prompts)))
    return [[answer.ids for answer in found[number]] for number in range(len(prompts))]


def policy(model, tokenizer, **options):
    stops = stop_ids(model.generation_config, tokenizer)
    return TransformersPolicy(model, Renderer(tokenizer, stops, "auto", "\n"), stops, **options)


def chi_squared(counts, expected):
    """Return the probability of counts that are at least as far off."""
    from scipy.stats import chisquare

    return chisquare(counts, expected).pvalue


def test_one_token_is_drawn_from_the_softmax(lora, prompts):
    options, number = {"temperature": 2.0, "top_k": 12, "max_new_tokens": 1}, 4000
    answers = drawn(lora, [prompts[0]], number, options, seed=3, stops=())[0]
    with torch.inference_mode():
        logits = lora(torch.tensor([prompts[0]])).logits[0, -1]
    likeliest = logits.topk(12)
    wanted = (likeliest.values / 2.0).softmax(0) * number
    counts = [sum(answer == [token] for answer in answers) for token in likeliest.indices.tolist()]
    assert sum(counts) == number and float(wanted.min()) > 5
    assert chi_squared(counts, (wanted.double() / wanted.double().sum() * number).tolist()) > 0.01


def test_two_tokens_are_drawn_from_their_joint_probability(lora, prompts):
    """The second pass sees the cache that was made once for all answers."""
    options, number = {"temperature": 3.0, "top_k": 3, "max_new_tokens": 2}, 3000
    answers = drawn(lora, [prompts[0]], number, options, seed=5, stops=())[0]
    wanted = {}
    for first, share in top(lora, prompts[0]):
        for second, part in top(lora, [*prompts[0], first]):
            wanted[first, second] = share * part * number
    counts = [sum(answer == list(pair) for answer in answers) for pair in wanted]
    assert sum(counts) == number and min(wanted.values()) > 5
    assert chi_squared(counts, list(wanted.values())) > 0.01


def top(model, ids):
    with torch.inference_mode():
        best = (model(torch.tensor([ids])).logits[0, -1].double() / 3.0).topk(3)
    return zip(best.indices.tolist(), best.values.softmax(0).tolist(), strict=True)


def test_answers_do_not_depend_on_the_batch(lora, prompts):
    answers = drawn(lora, prompts)
    assert drawn(lora, prompts, budget_bytes=ONE_BY_ONE) == answers
    assert drawn(lora, prompts[::-1])[::-1] == answers
    # Who was cut off asks for the rest, or for more of the same.
    assert drawn(lora, prompts[5:]) == answers[5:]
    assert [row[:3] for row in drawn(lora, prompts, samples=5)] == answers
    assert drawn(lora, prompts, options={**SAMPLING, "max_new_tokens": 4}) == [
        [ids[:4] for ids in row] for row in answers
    ]
    # They are of different lengths, or rows that leave would not have been seen.
    assert len({len(ids) for row in answers for ids in row}) > 3


def test_answers_depend_on_seed_and_number(lora, prompts):
    answers = drawn(lora, prompts)
    other = drawn(lora, prompts, seed=8)
    assert sum(one != two for rows in zip(answers, other, strict=True) for one, two in zip(*rows, strict=True)) > 20
    assert len({tuple(ids) for row in answers for ids in row}) > 20
    # A prompt that is asked twice is answered twice.
    twice = drawn(lora, [prompts[0], prompts[0]])
    assert twice[0] == answers[0] and twice[1] != answers[0]


def test_upstream_draws_the_same(lora, prompts, monkeypatch):
    """Two ways through the model, one sequence of numbers."""
    answers = drawn(lora, prompts)
    monkeypatch.setattr(decoding, "decodes", lambda model: False)
    assert drawn(lora, prompts) == answers


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
ARCHITECTURES = {
    "learned positions": GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=99, bos_token_id=None, eos_token_id=None
    ),
    "ALiBi": BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=99, bos_token_id=None, eos_token_id=None),
    "sliding window": MistralConfig(**TINY, intermediate_size=48, num_key_value_heads=2, sliding_window=6),
    "wide heads": Qwen3Config(**TINY, intermediate_size=48, num_key_value_heads=2, head_dim=16),
    "state": MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=99),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_kind_of_decoder_draws_what_one_by_one_gives(kind):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(ARCHITECTURES[kind]).eval()
    for parameter in made.parameters():
        # Fresh weights are so small that all tokens are alike.
        parameter.data *= 4
    prompts = [[5, 9, 11], [7, 8, 9, 10, 11, 12, 13, 14], [21]]
    greedy = {"temperature": 0, "max_new_tokens": 9}
    assert drawn(made, prompts, 1, greedy) == [[ids] for ids in generate(made, prompts, [4], 0, 9, 1)]
    options = {"temperature": 1.0, "max_new_tokens": 9}
    assert drawn(made, prompts, options=options) == drawn(made, prompts, options=options, budget_bytes=ONE_BY_ONE)
    assert decoding.decodes(made) == (kind != "state")


def test_greedy_is_what_generate_says(model, prompts):
    wanted = [[ids, ids] for ids in generate(model, prompts, [4], 0, 10, 4)]
    assert drawn(model, prompts, 2, {"temperature": 0, "max_new_tokens": 10}) == wanted


def test_an_encoder_apart_and_virtual_tokens(prompts, tokenizer):
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    rewriter = load_base(AutoModelForSeq2SeqLM, {"name_or_path": "embedded:rewriter", **FULL}, None)
    questions = [tokenizer(text).input_ids for text in ("The soup was cold.", "Not bad at all, and cheap.")]
    greedy = {"temperature": 0, "max_new_tokens": 8}
    assert drawn(rewriter, questions, 1, greedy) == [[ids] for ids in generate(rewriter, questions, [4], 0, 8, 2)]
    answers = drawn(rewriter, questions, options={"temperature": 2.0, "max_new_tokens": 8})
    assert answers == drawn(
        rewriter, questions, options={"temperature": 2.0, "max_new_tokens": 8}, budget_bytes=ONE_BY_ONE
    )
    for config in (PromptTuningConfig, PrefixTuningConfig):
        tuned = get_peft_model(
            load_base(AutoModelForCausalLM, FULL, None), config(num_virtual_tokens=3, task_type="CAUSAL_LM")
        )
        assert drawn(tuned, prompts, 1, greedy) == [[ids] for ids in generate(tuned, prompts, [4], 0, 8, 1)]
        assert drawn(tuned, prompts) == drawn(tuned, prompts, budget_bytes=ONE_BY_ONE)


def test_a_prompt_is_read_once_and_rows_that_have_ended_leave(lora, prompts):
    passes = []
    lora.get_base_model().model.embed_tokens.register_forward_hook(
        lambda _, inputs, out: passes.append(inputs[0].shape)
    )
    answers = drawn(lora, prompts, 6, {"temperature": 1.0, "max_new_tokens": 12}, stops=range(250))
    assert passes[0] == (len(prompts), max(map(len, prompts)))
    rows = [shape[0] for shape in passes[1:]]
    assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0] / 2
    # No more than an eighth of what is computed is for nothing.
    needed = sum(min(len(ids), 11) for row in answers for ids in row)
    assert needed <= sum(rows)
    assert sum(rows) <= needed / (1 - decoding.LEAVE_SHARE)


def test_a_batch_that_does_not_fit_is_halved(lora, prompts):
    answers, seen = drawn(lora, prompts), []

    def narrow(_, inputs):
        seen.append(len(inputs[0]))
        if len(inputs[0]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    lora.get_base_model().model.embed_tokens.register_forward_pre_hook(narrow)
    assert drawn(lora, prompts) == answers and max(seen) > 5
    lora.get_base_model().model.embed_tokens.register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        drawn(lora, prompts)


def test_the_model_is_left_as_it_was(lora, prompts):
    lora.train()
    lora.gradient_checkpointing_enable()
    before = [parameter.requires_grad for parameter in lora.parameters()]
    answers = sampling.sample(lora, prompts, 2, SAMPLING, 0, [4], 0, budget_bytes=ONE_BY_ONE)
    next(answers)
    # Who stops in the middle can train.
    assert lora.training and not torch.is_inference_mode_enabled()
    lora(torch.tensor([prompts[0]]), labels=torch.tensor([prompts[0]])).loss.backward()
    assert [parameter.requires_grad for parameter in lora.parameters()] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 3, "tempreature": 1.0}, r"unknown option 'tempreature'; did you mean 'temperature'\?"),
        ({"max_new_tokens": 3, "num_beams": 2}, "unknown option 'num_beams'"),
        ({"temperature": 1.0}, "max_new_tokens is None"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 3, "temperature": -1.0}, "sampling: .*temperature.*-1"),
        ({"max_new_tokens": 3, "top_k": -3}, "sampling: .*top_k.*-3"),
    ],
)  # fmt: skip
def test_an_option_that_is_refused(model, prompts, options, message):
    with pytest.raises(UserError, match=message) as caught:
        sampling.sample(model, prompts, 1, options, 0, [4], 0)
    assert "\n" not in str(caught.value)


def test_upstreams_options_are_there_by_their_own_names():
    asked = {
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "min_new_tokens",
    }
    assert asked <= names() and "max_new_tokens" in names()
    assert not {"do_sample", "num_beams", "encoder_repetition_penalty", "max_time"} & names()


def test_padding_is_no_repetition(lora, prompts):
    """The end token fills up rows here; a penalty on what a row holds must not make the answer go on."""
    options = {"temperature": 0, "repetition_penalty": 5.0, "max_new_tokens": 6}
    alone = [dict(sampling.sample(lora, [ids], 1, options, 0, [4], 4))[0][0].ids for ids in prompts]
    together = dict(sampling.sample(lora, prompts, 1, options, 0, [4], 4))
    assert [together[number][0].ids for number in range(len(prompts))] == alone


def test_answers_end_where_the_model_has_no_more_positions(model):
    context = model.config.max_position_embeddings
    prompts = [[5] * (context - 3), [5, 6]]
    found = dict(sampling.sample(model, prompts, 1, {"temperature": 1.0, "max_new_tokens": 6}, 0, [], 0))
    assert [len(found[at][0].ids) for at in (0, 1)] == [3, 6] and not found[0][0].stopped
    torch.manual_seed(0)
    learned = AutoModelForCausalLM.from_config(
        GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=99, n_positions=16)
    )
    found = dict(sampling.sample(learned, [[5] * 14, *[[6]] * 9], 1, {"max_new_tokens": 12}, 0, [], 0))
    assert [len(found[at][0].ids) for at in (0, 1)] == [2, 12]
    with pytest.raises(UserError, match="prompt 0 is empty"):
        sampling.sample(model, [[]], 1, {"max_new_tokens": 6}, 0, [], 0)
    with pytest.raises(UserError, match=rf"prompt 1 has {context} tokens, and the model takes {context}"):
        sampling.sample(model, [[5], [5] * context], 1, {"max_new_tokens": 6}, 0, [], 0)


def test_a_policy_answers_and_counts(lora, tokenizer, conversations):
    made = policy(lora, tokenizer)
    answers = made.answer(conversations, 3, SAMPLING, 0)
    assert [len(texts) for texts in answers] == [3] * len(conversations)
    assert all(text == text.strip() for texts in answers for text in texts)
    assert dict(made.draw(conversations, 3, SAMPLING, 0)) == dict(enumerate(answers))
    assert made.counts.answers == 6 * len(conversations) and made.counts.seconds > 0
    assert made.counts.answer_tokens > made.counts.answers and 0 < made.counts.cut_off < made.counts.answers
    halves = policy(lora, tokenizer, bf16=True).answer(conversations, 1, SAMPLING, 0)
    assert len(halves) == len(conversations)


def test_how_likely_an_answer_is(lora, tokenizer, conversations):
    made = policy(lora, tokenizer)
    pairs = [(turns, "positive") for turns in conversations[:2]]
    for (turns, answer), (total, tokens) in zip(pairs, made.log_likelihoods(pairs), strict=True):
        given = made.renderer.serve(turns)
        added = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = lora(torch.tensor([given + added])).logits[0, len(given) - 1 : -1].log_softmax(-1)
        assert total == pytest.approx(float(logits.gather(1, torch.tensor(added)[:, None]).sum()), rel=1e-4)
        assert tokens == len(added)


def test_how_far_a_model_has_moved(lora, tokenizer, conversations):
    made = policy(lora, tokenizer)
    pairs = [(turns, "negative") for turns in conversations[:4]]
    moved = made.kl(pairs)
    rows = made._rows(pairs)
    each = []
    for row in rows:
        with torch.inference_mode():
            trained = lora(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
            with lora.disable_adapter():
                base = lora(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        values = (trained.exp() * (trained - base)).sum(-1)
        each += [float(values[at]) for at, label in enumerate(row.labels[1:]) if label != -100]
    assert moved.tokens == len(each) and moved.mean == pytest.approx(sum(each) / len(each), rel=1e-4)
    assert moved.mean > 0.01
    # The other way round is another figure, and the base has not moved from itself.
    assert measure(WithoutAdapter(lora), lora, rows, None).mean != pytest.approx(moved.mean, rel=0.01)
    assert made.kl(pairs, reference=lora).mean == 0.0
    assert any(parameter.requires_grad for parameter in lora.parameters())
    with pytest.raises(UserError, match="no base to be compared with"):
        policy(lora.unload(), tokenizer).kl(pairs)


def test_virtual_tokens_are_no_part_of_the_answer(model, tokenizer, conversations):
    from peft import PromptTuningConfig, get_peft_model

    tuned = get_peft_model(model, PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"))
    made = policy(tuned, tokenizer)
    pairs = [(conversations[0], "The soup was a horrible waiter.")]
    row = made._rows(pairs)[0]
    start = next(at for at, label in enumerate(row.labels) if label != -100)
    with torch.inference_mode():
        trained = tuned(torch.tensor([row.input_ids])).logits[0, -row.length :].log_softmax(-1)[start - 1 : -1]
        with tuned.disable_adapter():
            base = tuned(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)[start - 1 : -1]
    assert made.kl(pairs).mean == pytest.approx(float((trained.exp() * (trained - base)).sum(-1).mean()), rel=1e-3)


def served(model=None, tokenizer=None, **others):
    renderer = Renderer(tokenizer, [4], "auto", "\n") if tokenizer else None
    return Served(renderer, [4], model, **others)


def test_engines_are_made_by_name(lora, tokenizer, conversations):
    made = make_policy("transformers", served(lora, tokenizer))
    assert made.answer(conversations, 1, SAMPLING, 0) == policy(lora, tokenizer).answer(conversations, 1, SAMPLING, 0)
    with pytest.raises(UserError, match=r"unknown engine 'vlm'; did you mean 'vllm'\?"):
        make_policy("vlm", served())
    with pytest.raises(UserError, match="engine transformers: unknown option 'budget'; did you mean 'budget_bytes'"):
        make_policy("transformers", served(), {"budget": 1})
    with pytest.raises(UserError, match=r"vLLM is not installed \(pip install vllm\)"):
        make_policy("vllm", served())
    with pytest.raises(UserError, match="engine server: base_url is missing"):
        make_policy("server", served())
    with pytest.raises(UserError, match="engine server: unknown option 'base_uri'; did you mean 'base_url'"):
        make_policy("server", served(), {"base_uri": "http://127.0.0.1/v1"})


class Echo:
    """An endpoint that answers with what it was asked."""

    def __init__(self, broken=None):
        self.asked, self.broken = [], broken

    def complete(self, messages, *, n, **others):
        self.asked.append(others)
        time.sleep(0.005)
        if messages[-1]["content"] == self.broken:
            raise UserError("the endpoint refuses")
        return [f" {messages[-1]['content']} {number} " for number in range(n)]


def test_a_server_is_asked_by_its_own_names():
    endpoint = Echo()
    made = make_policy("server", served(), {"endpoint": endpoint, "at_once": 3})
    turns = [({"role": "user", "content": text},) for text in "abcdea"]
    assert made.answer(turns, 2, {"max_new_tokens": 5, "top_k": 3}, 1) == [
        [f"{text} 0", f"{text} 1"] for text in "abcdea"
    ]
    assert all({"max_tokens": 5, "top_k": 3}.items() <= asked.items() for asked in endpoint.asked)
    seeds = {asked["seed"] for asked in endpoint.asked}
    assert len(seeds) == 6 and all(0 <= seed < 2**31 for seed in seeds)
    made.answer(turns[3:5], 2, {}, 1)
    assert {asked["seed"] for asked in endpoint.asked[6:]} <= seeds
    assert made.counts.answers == 16


def test_what_a_server_answered_is_kept_when_it_then_refuses():
    endpoint = Echo(broken="c")
    made = make_policy("server", served(), {"endpoint": endpoint, "at_once": 1})
    turns = [({"role": "user", "content": text},) for text in "abc" + "d" * 50]
    kept = []
    with pytest.raises(UserError, match="the endpoint refuses"):
        for number, _ in made.draw(turns, 1, {}, 0):
            kept.append(number)
    assert kept[:2] == [0, 1] and len(endpoint.asked) < 50


def test_vllm_is_asked_as_it_is_documented(tokenizer, conversations, monkeypatch, tmp_path):
    """It cannot run here; this holds what is handed over, not what comes of it."""
    calls = []
    fake, requests = types.ModuleType("vllm"), types.ModuleType("vllm.lora.request")
    fake.__spec__ = types.SimpleNamespace()

    class LLM:
        def __init__(self, **options):
            calls.append(options)

        def generate(self, prompts, parameters, use_tqdm, lora_request):
            calls.append((prompts, parameters, lora_request))
            said = types.SimpleNamespace(text=" positive ", token_ids=[5, 4], finish_reason="stop")
            return [types.SimpleNamespace(outputs=[said] * 2, **prompt) for prompt in prompts]

    fake.LLM, fake.SamplingParams = LLM, dict
    requests.LoRARequest = lambda *words: words
    for name, module in (("vllm", fake), ("vllm.lora", types.ModuleType("vllm.lora")), ("vllm.lora.request", requests)):
        monkeypatch.setitem(sys.modules, name, module)
    given = served(None, tokenizer, base="x/y", adapter=tmp_path, adapter_rank=8)
    made = make_policy("vllm", given, {"gpu_memory_utilization": 0.4})
    assert made.answer(conversations, 2, {"max_new_tokens": 7, "temperature": 0.5}, 0) == [["positive"] * 2] * 9
    options, (prompts, parameters, adapter) = calls
    assert options == {
        "model": "x/y", "revision": None, "enable_lora": True, "max_lora_rank": 8, "gpu_memory_utilization": 0.4,
    }  # fmt: skip
    assert prompts[0] == {"prompt_token_ids": given.renderer.serve(conversations[0])}
    assert parameters[0]["max_tokens"] == 7 and parameters[0]["n"] == 2 and parameters[0]["stop_token_ids"] == [4]
    assert len({each["seed"] for each in parameters}) == 9
    assert adapter == ("adapter-1", 1, str(tmp_path))
    made.adapter = tmp_path / "next"
    made.answer(conversations[:1], 2, {"max_new_tokens": 7}, 0)
    assert calls[-1][-1] == ("adapter-2", 2, str(tmp_path / "next"))
    assert made.counts.answers == 20 and made.counts.cut_off == 0

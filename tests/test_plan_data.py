"""`plan --data`: what is told of the data is what a run's trainer makes of them."""

import json
import random

import pytest
from plan_samples import LLAMA_8B

from hf_peft_recipes import get_recipe
from hf_peft_recipes.device import named_device
from hf_peft_recipes.plan.documents import Documents, pack
from hf_peft_recipes.plan.evaluating import plan_evaluation
from hf_peft_recipes.plan.held_out import HeldOut
from hf_peft_recipes.plan.make_job import make_job
from hf_peft_recipes.plan.memory import plan_memory
from hf_peft_recipes.plan.shapes import read_shape
from hf_peft_recipes.plan.step import walk_evaluation, walk_validation
from hf_peft_recipes.plan.throughput import product_flops
from hf_peft_recipes.report.plan import plan_view


def test_the_embedded_data_make_as_many_rows_and_steps_as_the_trainer_says(tmp_path):
    recipe = get_recipe("lora", num_train_epochs=2)
    plan = recipe.plan(data=True)
    trainer = recipe.build_trainer(tmp_path)
    rows = trainer.train_dataset
    assert plan.data["packed_rows"] == len(rows)
    assert plan.data["tokens"] == sum(map(len, rows["input_ids"]))
    assert plan.data["supervised_tokens"] == sum(label != -100 for row in rows["labels"] for label in row)
    assert plan.data["rows"] == sum(map(len, rows["seq_lengths"]))
    assert plan.step["length"] == max(map(len, rows["input_ids"]))
    assert plan.data["fill"] == pytest.approx(plan.data["tokens"] / len(rows) / plan.step["length"])
    steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert plan.data["steps"] == steps[-1]
    assert plan.data["epochs"] == 2


def test_the_packing_is_trls(tmp_path):
    from datasets import Dataset
    from trl import pack_dataset

    draw = random.Random(1)
    for number, longest in [(1, 5), (40, 64), (2300, 64), (300, 20)]:
        lengths = [draw.randint(1, longest) for _ in range(number)]
        rows = Dataset.from_dict({"input_ids": [[0] * length for length in lengths]})
        packed = pack_dataset(rows, 64, "bfd_split")
        told = pack(lengths, 64)
        assert (told.rows, told.longest) == (len(packed), max(map(len, packed["input_ids"])))
        kinds = [len(set(lengths)) for lengths in packed["seq_lengths"]]
        assert told.lengths_a_row == pytest.approx(sum(kinds) / len(kinds), rel=0.05)


def test_padding_is_counted_where_rows_are_not_packed():
    documents = Documents((4, 4, 8, 8), 24, 8, 4)
    assert documents.positions(1, packed=False) == documents.positions(2, packed=True) == 24
    assert 24 <= documents.positions(2, packed=False) <= 32
    assert documents.positions(4, packed=False) == 32
    assert documents.steps(batch=2, accumulation=1, devices=1) == 2
    assert documents.steps(batch=1, accumulation=3, devices=1) == 2


def test_hours_need_the_data_or_a_number_of_steps():
    recipe = get_recipe("lora", device="H100")
    blind, seen = recipe.plan(), recipe.plan(data=True)
    assert blind.hours is None and blind.data is None
    assert any("`--data`" in told for told in blind.assumptions)
    assert seen.hours == pytest.approx(seen.data["tokens"] / seen.tokens_per_second / 3600)
    assert not any("`--data`" in told for told in seen.assumptions)
    # Fewer tokens with loss need less memory for the loss, shorter documents less time for attention.
    assert seen.total_bytes <= blind.total_bytes
    short = get_recipe("lora", device="H100", max_steps=4).plan(data=True)
    assert short.data["steps"] == 4 and 0 < short.hours < seen.hours


def test_a_stream_cannot_be_counted(command):
    finished = command("plan", "lora", "--data", "--data.streaming", "--dataset", "nowhere.jsonl")
    assert finished.returncode == 2
    assert "leave --data.streaming out" in finished.stderr and finished.stderr.count("\n") == 1


def test_json_and_table_tell_the_data(command, jsonl):
    words = ("plan", "lora", "--data", "--dataset", jsonl, "--data.columns.prompt", "question")
    plan = json.loads(command(*words, "--data.columns.completion", "answer", "--json").stdout)
    assert {"rows", "tokens", "supervised_tokens", "longest", "epochs", "steps"} <= set(plan["data"])
    assert 0 < plan["data"]["supervised_tokens"] < plan["data"]["tokens"]
    assert "packed rows" in "".join(map(str, plan_view(plan).renderables))
    assert json.loads(command("plan", "lora", "--json").stdout)["data"] is None


def test_documents_change_what_attention_costs():
    device = named_device("H100")
    recipe = get_recipe("lora", model="x", device=device, attn_implementation="flash_attention_2").resolved
    documents, shape = Documents((64,) * 16, 1024, 1024, 1), read_shape(LLAMA_8B, "x")
    full, short = (make_job(recipe, LLAMA_8B, "x", device, documents=given) for given in (None, documents))
    assert short.attention_span == 64 and full.attention_span == 1024
    assert product_flops(short, shape) < product_flops(full, shape)


def test_what_is_scored_and_answered_is_what_evaluation_meets(monkeypatch, tmp_path):
    from hf_peft_recipes.generation import greedy
    from hf_peft_recipes.generation import likelihoods as scoring
    from hf_peft_recipes.plan import evaluating

    scored, answered = [], []
    real_losses, real_continue = scoring._batch_losses, greedy.go_on

    def losses(model, ids, labels, mask):
        scored.append((*ids.shape, int((labels[:, 1:] != -100).any(0).sum())))
        return real_losses(model, ids, labels, mask)

    def go_on(model, rows, masks, stop_ids, pad_id, max_new_tokens, *others):
        answered.append((len(rows), len(rows[0]), max_new_tokens))
        return real_continue(model, rows, masks, stop_ids, pad_id, max_new_tokens, *others)

    monkeypatch.setattr(scoring, "_batch_losses", losses)
    monkeypatch.setattr(greedy, "go_on", go_on)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 600)
    recipe = get_recipe(
        "lora",
        max_steps=1,
        certify="off",
        save_strategy="no",
        **{"evaluation.batch_size": 12, "evaluation.max_rows": 60},
    )
    documents = recipe._documents(recipe._for_run())
    recipe.train(tmp_path / "out")
    held = documents.held_out
    half = len(scored) // 2
    batches = list(evaluating._scored_batches(held.scored, 600))
    assert scored[:half] == scored[half:] and [batch[:2] for batch in batches] == [batch[:2] for batch in scored[:half]]
    # Rows that end at other places leave gaps between their answers, which are counted as if there were none.
    assert all(seen[2] <= told[2] < 3 * seen[2] for told, seen in zip(batches, scored, strict=False))
    answers = [(*batch, held.answer) for batch in evaluating._answered_batches(held.prompts, 12)]
    # Saving has a few prompts of its own answered, at more length, for the certificate.
    answered = [seen for seen in answered if seen[2] == held.answer]
    assert answers == answered[: len(answers)] == answered[len(answers) :]
    rows = recipe.build_trainer(tmp_path / "again").eval_dataset["input_ids"]
    assert held.watched == (len(rows), max(map(len, rows)))


def test_short_held_out_rows_make_a_small_evaluation():
    device = named_device("H100")
    recipe, shape = get_recipe("lora", model="x", device=device).resolved, read_shape(LLAMA_8B, "x")
    held = [HeldOut(((length, length - 4),) * 100, (length - 4,) * 100, 6, (100, 64)) for length in (16, 512)]
    unknown, short, long = (
        plan_evaluation(make_job(recipe, LLAMA_8B, "x", device, documents=documents), shape).size_bytes
        for documents in (None, *(Documents((64,) * 16, 1024, 1024, 1, held_out=known) for known in held))
    )
    assert short < long < unknown


def test_the_trainers_own_evaluation_counts():
    device = named_device("H100")
    options = {"model": "x", "device": device, "max_length": 8192, "evaluation.max_rows": 0}
    sizes = []
    for asked in ({"eval_strategy": "no"}, {"per_device_eval_batch_size": 1}, {"per_device_eval_batch_size": 4}):
        recipe = get_recipe("lora", **options, **asked).resolved
        sizes.append(plan_memory(make_job(recipe, LLAMA_8B, "x", device), read_shape(LLAMA_8B, "x")).phases["evaluate"])
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_pass_without_gradients_takes_what_all_its_layers_take():
    small = {**LLAMA_8B, "hidden_size": 256, "intermediate_size": 704, "vocab_size": 4096}
    device = named_device("H100")
    job = make_job(get_recipe("full", model="x", device=device).resolved, small, "x", device)
    few, many = (read_shape({**small, "num_hidden_layers": number}, "x") for number in (2, 12))
    # Autocast keeps a bfloat16 copy of every float32 weight until the pass is over, but not in inference mode.
    assert walk_validation(job, many) - walk_validation(job, few) == 2 * (
        many.linear_elements() - few.linear_elements()
    )
    assert walk_evaluation(job, many, 1) == walk_evaluation(job, few, 1)


def test_autocast_keeps_casts_without_gradients_but_not_in_inference_mode():
    import torch

    from hf_peft_recipes.plan.live import LiveBytes

    layers, x = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(4))), torch.zeros(1, 64)
    for mode, casts in ((torch.no_grad, 4), (torch.inference_mode, 0)):
        live = LiveBytes()
        with live, mode(), torch.autocast("cpu", torch.bfloat16):
            layers(x)
            assert live.live_bytes == casts * 64 * 64 * 2

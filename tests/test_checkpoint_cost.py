"""What is called upstream's is upstream's, and every way is measured as often."""

import json

import pytest

from benchmarks.checkpoints import Cell, Turns, build, measure, upstreams
from benchmarks.report import checkpoints as room


@pytest.mark.slow
def test_both_kinds_are_measured_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.checkpoints._WARMUP", 1)
    lines = [measure(Cell(kind, "lora", "embedded", 16, 2), tmp_path) for kind in ("checkpoint", "step")]
    assert [list(line["ratios"]) for line in lines] == [
        ["upstream", "upstream, synced", "sealed", "sealed, waited for"],
        ["unguarded", "guarded"],
    ]
    for line in lines:
        assert all(len(values) == 2 and min(values) > 0 for values in line["seconds"].values())
        assert next(iter(line["ratios"].values())) == 1
    # A rank of 16 on all layers, and Adam's two states of it: three times what the adapter takes.
    assert lines[0]["bytes"] > 1_500_000
    for line in lines:
        line["commit"] = "0123456789ab"
    path = tmp_path / "checkpoints.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    section = room.report(path, "checkpoints")
    assert "times as long as upstream's takes" in section.block.text and "| guarded |" in section.table.markdown()


@pytest.mark.slow
def test_a_step_without_guards_is_upstreams_alone(tmp_path):
    from trl import SFTTrainer

    trainer = build(Cell("step", "lora", "embedded", 16, 2), tmp_path, "run")
    kind, callbacks, methods = type(trainer), list(trainer.callback_handler.callbacks), dict(vars(trainer))
    assert upstreams(trainer) is SFTTrainer and kind is not SFTTrainer
    turns = Turns(trainer)
    turns.switch("unguarded")
    assert type(trainer) is SFTTrainer and {"training_step", "compute_loss"} <= methods.keys() - vars(trainer).keys()
    named = {type(callback).__module__ for callback in trainer.callback_handler.callbacks}
    assert not any(name.startswith("hf_peft_recipes") for name in named)
    turns.switch("guarded")
    assert type(trainer) is kind and trainer.callback_handler.callbacks == callbacks
    assert trainer.training_step is methods["training_step"] and trainer.compute_loss is methods["compute_loss"]

"""What is called upstream's is upstream's, and every way is measured as often."""

import json

import pytest

from benchmarks.checkpoints import Cell, build, measure, strip, upstreams
from benchmarks.report import checkpoints as room


@pytest.mark.slow
def test_both_kinds_are_measured_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.checkpoints._WARMUP", 1)
    monkeypatch.setattr("benchmarks.checkpoints._PAIRS", 2)
    lines = [measure(Cell(kind, "lora", "embedded", 16, 2), tmp_path) for kind in ("checkpoint", "step")]
    assert [list(line["ratios"]) for line in lines] == [
        ["upstream", "upstream, synced", "sealed", "sealed, waited for"],
        ["unguarded", "guarded"],
    ]
    for line, turns in zip(lines, (2, 4), strict=True):
        assert all(len(values) == turns and min(values) > 0 for values in line["seconds"].values())
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
def test_a_stripped_trainer_is_upstreams(tmp_path):
    from trl import SFTTrainer

    trainer = build(Cell("step", "lora", "embedded", 16, 2), tmp_path, "run")
    assert upstreams(trainer) is SFTTrainer and type(trainer) is not SFTTrainer
    strip(trainer)
    assert type(trainer) is SFTTrainer and trainer.get_batch_samples.__func__ is SFTTrainer.get_batch_samples
    named = {type(callback).__module__ for callback in trainer.callback_handler.callbacks}
    assert not any(name.startswith("hf_peft_recipes") for name in named)

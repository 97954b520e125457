"""Checkpoints: whole or not there, verified before a run goes on from one, and what becomes of a run that goes on."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from conftest import FAST
from safetensors.torch import load_file

from hf_peft_recipes import UserError, get_recipe, list_checkpoints
from hf_peft_recipes.checkpoints import Batch, newest_good, read_manifest, verify, writing
from hf_peft_recipes.checkpoints.manifest import MANIFEST_FILE, ManifestError, seal
from hf_peft_recipes.checkpoints.resuming import share_rows
from hf_peft_recipes.checkpoints.sealed import SealedCheckpoints
from hf_peft_recipes.checkpoints.writing import CheckpointError, Writing, rotate, tidy

BATCH = Batch(1, 2, 4)
STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "max_length": 128}


def recipe(name="lora", **settings):
    return get_recipe(name, **{**FAST, **STEPS, "learning_rate": 1e-3, **settings})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the result of an undisturbed run of six steps."""
    return recipe().train(tmp_path_factory.mktemp("whole") / "out", progress=False)


def killed(result, folder: Path) -> Path:
    """Return a copy of a run as it stood while it was running, the adapter not yet saved."""
    shutil.copytree(result.folder, folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "result.json").write_text(json.dumps({**result.record, "status": "running", "exit_code": None}))
    return folder


def same_weights(one: Path, other: Path) -> bool:
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in (one, other)]
    return tensors[0].keys() == tensors[1].keys() and all(torch.equal(tensors[0][k], tensors[1][k]) for k in tensors[0])


def made(folder: Path, step: int) -> Path:
    """Return a checkpoint with two files that was written as a trainer's is."""
    beside = Writing(folder, step)
    beside.begin(0)
    (beside.partial / "weights").write_text(f"weights of step {step}")
    (beside.partial / "inner").mkdir()
    (beside.partial / "inner" / "state").write_bytes(b"\0" * 100)
    beside.finish(10, True, BATCH)
    return beside.target


def test_a_run_leaves_checkpoints_that_are_whole_and_no_more_than_asked(whole):
    assert whole.record["checkpoints"]["written"] == [2, 4, 6]
    assert whole.record["checkpoints"]["failed"] == {}
    verdicts = list_checkpoints(whole.folder)
    assert [(one["name"], one["good"], one["problems"]) for one in verdicts] == [
        ("checkpoint-6", True, []), ("checkpoint-4", True, []),
    ]  # fmt: skip
    names = {path.name for path in (whole.folder / "checkpoint-6").iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", MANIFEST_FILE} <= names
    # Neither the base's weights nor pickled arguments nor a card.
    assert not {"model.safetensors", "training_args.bin", "README.md"} & names
    assert not list(whole.folder.glob(".checkpoint-*"))
    manifest = read_manifest(whole.folder / "checkpoint-6")
    assert (manifest.step, manifest.planned_steps, manifest.resumable) == (6, 6, True)
    assert manifest.bytes == whole.record["checkpoints"]["bytes"]
    assert manifest.files.keys() == names - {MANIFEST_FILE}


def test_a_run_goes_on_from_the_newest_whole_one_to_the_very_same_weights(whole, tmp_path, capsys):
    folder = killed(whole, tmp_path / "out")
    (folder / "checkpoint-6" / "optimizer.pt").unlink()
    (folder / ".checkpoint-5.partial").mkdir()
    result = recipe().train(folder, resume=True, progress=False)
    told = capsys.readouterr().err
    assert "skipped checkpoint-6: optimizer.pt: missing" in told
    assert "going on from checkpoint-4: step 4 of 6" in told
    assert result.record["resumed"] == {
        "step": 4, "skipped": [{"name": "checkpoint-6", "problems": ["optimizer.pt: missing"]}],
    }  # fmt: skip
    assert same_weights(whole.folder, folder)
    assert [one["good"] for one in list_checkpoints(folder)] == [True, True]
    assert not list(folder.glob(".checkpoint-*"))


def test_what_differs_from_the_run_that_began_is_refused(whole, tmp_path):
    folder = killed(whole, tmp_path / "out")
    with pytest.raises(UserError, match=r"--resume: training.learning_rate is 0.1 now and was 0.001"):
        recipe(learning_rate=0.1).train(folder, resume=True)
    with pytest.raises(UserError, match=r"--resume: adapter.r is 4 now and was 16"):
        recipe(r=4).train(folder, resume=True)
    fingerprint = json.loads((folder / "base_fingerprint.json").read_text())
    (folder / "base_fingerprint.json").write_text(json.dumps({**fingerprint, "config": {"hidden_size": 1}}))
    with pytest.raises(UserError, match="was trained on another base than"):
        recipe().train(folder, resume=True)
    (folder / "base_fingerprint.json").write_text(json.dumps(fingerprint))
    record = json.loads((folder / "result.json").read_text())
    record["data"]["fingerprint"] = "another"
    (folder / "result.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"has changed since the run in .* began"):
        recipe().train(folder, resume=True)
    # How often is saved, and how much is scored, makes no difference to what was learned.
    (folder / "result.json").unlink()
    recipe(save_steps=3, logging_steps=2).train(folder, resume=True, progress=False)
    assert same_weights(whole.folder, folder)


def test_where_none_is_whole_the_run_is_not_begun_anew_by_itself(whole, tmp_path, capsys):
    folder = killed(whole, tmp_path / "out")
    for name in ("checkpoint-4", "checkpoint-6"):
        (folder / name / MANIFEST_FILE).unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(checkpoint-6: no manifest.json.*overwrite"):
        recipe().train(folder, resume=True)
    # Ended before its first checkpoint, it loses nothing by beginning again.
    for name in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(folder / name)
    result = recipe().train(folder, resume=True, progress=False)
    assert "begins anew" in capsys.readouterr().err
    assert result.record["resumed"] == {"step": 0, "skipped": []}
    assert same_weights(whole.folder, folder)


def test_a_disk_that_is_full_costs_a_checkpoint_and_not_the_run(whole, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    calls = iter([usage, usage._replace(free=1000), usage])
    monkeypatch.setattr("shutil.disk_usage", lambda _: next(calls, usage))
    result = recipe().train(tmp_path / "out", progress=False)
    told = capsys.readouterr().err
    assert "warning: no checkpoint at step 4: the disk has 0 MiB" in told
    assert "the last one is that of step 2" in told
    assert result.record["checkpoints"]["written"] == [2, 6]
    assert "the disk has" in result.record["checkpoints"]["failed"]["4"]
    assert same_weights(whole.folder, result.folder)


def test_training_goes_on_while_a_checkpoint_is_sealed(whole, tmp_path, monkeypatch):
    from transformers import TrainerCallback

    goes_on, seen, real = threading.Event(), [], writing.seal

    def slow(folder, step, *arguments):
        assert step != 2 or goes_on.wait(60)
        return real(folder, step, *arguments)

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                seen.append((tmp_path / "out" / "checkpoint-2").exists())
                goes_on.set()

    monkeypatch.setattr(writing, "seal", slow)
    result = recipe(callbacks=[Look()]).train(tmp_path / "out", progress=False)
    assert seen == [False]
    assert result.record["checkpoints"]["written"] == [2, 4, 6]
    assert same_weights(whole.folder, result.folder)


def test_one_that_cannot_be_sealed_is_told_when_that_is_known(whole, tmp_path, monkeypatch, capsys):
    real = writing.seal

    def broken(folder, step, *arguments):
        if step == 6:
            raise OSError(5, "Input/output error")
        return real(folder, step, *arguments)

    monkeypatch.setattr(writing, "seal", broken)
    result = recipe().train(tmp_path / "out", progress=False)
    assert "warning: no checkpoint at step 6: [Errno 5] Input/output error; the last" in capsys.readouterr().err
    assert result.record["checkpoints"]["written"] == [2, 4]
    assert same_weights(whole.folder, result.folder)
    assert not list(result.folder.glob(".checkpoint-*"))


def test_the_best_checkpoint_stays_and_comes_back_wherever_the_folder_lies(tmp_path, capsys):
    # A rate that breaks the model at once, and training mends it; the highest loss is called the best, the first one.
    best = recipe(
        load_best_model_at_end=True, save_strategy="steps", eval_strategy="steps", eval_steps=2, save_total_limit=1,
        metric_for_best_model="eval_loss", greater_is_better=True, learning_rate=0.03,
        lr_scheduler_type="constant", warmup_steps=0, **{"evaluation.max_rows": 8},
    )  # fmt: skip
    result = best.train(tmp_path / "whole" / "out", progress=False)
    step = result.record["stopping"]["best_step"]
    assert step == 2
    assert (result.folder / f"checkpoint-{step}").is_dir()
    assert same_weights(result.folder / f"checkpoint-{step}", result.folder)
    # Upstream removes the last one at the end.
    folder = killed(result, tmp_path / "moved")
    result.folder.parent.rename(tmp_path / "away")
    moved = best.train(folder, resume=True, progress=False)
    assert moved.record["resumed"]["step"] == step
    assert moved.record["stopping"] == result.record["stopping"]
    assert same_weights(tmp_path / "away" / "out", folder)


def test_a_best_checkpoint_that_broke_is_told_and_looked_for_anew(tmp_path, capsys):
    from types import SimpleNamespace

    trainer = SealedCheckpoints()
    made(tmp_path, 3)
    state = SimpleNamespace(
        stateful_callbacks={}, best_global_step=3, best_metric=1.0, best_model_checkpoint="old/path"
    )
    trainer.state, trainer.args = state, SimpleNamespace(output_dir=str(tmp_path))
    trainer.callback_handler = SimpleNamespace(callbacks=[])
    trainer._load_callback_state()
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / "weights").unlink()
    trainer._load_callback_state()
    assert "the best checkpoint is lost: checkpoint-3: weights: missing" in capsys.readouterr().err
    assert (state.best_metric, state.best_global_step, state.best_model_checkpoint) == (None, None, None)


def test_a_checkpoint_is_what_its_manifest_says_to_the_bit(tmp_path):
    path = made(tmp_path, 3)
    assert verify(path).good
    damages = {
        "weights: missing": lambda: (path / "weights").unlink(),
        "weights: 0 bytes, 17 were written": lambda: (path / "weights").write_text(""),
        "weights: other bytes than were written": lambda: (path / "weights").write_text("weights of step 4"),
        "inner/state: missing": lambda: shutil.rmtree(path / "inner"),
        "more.bin: the manifest does not name it": lambda: (path / "more.bin").touch(),
        "inner/state: not a plain file": lambda: ((path / "inner/state").unlink(), (path / "inner/state").mkdir()),
        "it is of step 3": lambda: path.rename(path),
    }
    for problem, damage in damages.items():
        if problem.startswith("it is"):
            renamed = path.rename(tmp_path / "checkpoint-9")
            assert verify(renamed).problems == ("it is of step 3",)
            break
        damage()
        assert verify(path).problems == (problem,)
        shutil.rmtree(path)
        made(tmp_path, 3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"), ("{", "cannot be read"), ("[]", "is not one"), ("{}", "is not one"),
        ('{"schema_version": 2}', "has schema version 2"), ('{"schema_version": 1}', "is not one"),
        ('{"schema_version": 1, "files": {"../x": {"bytes": 0, "sha256": ""}}}', "lies outside of the checkpoint"),
        ('{"schema_version": 1, "files": {"/etc/x": {"bytes": 0, "sha256": ""}}}', "lies outside of the checkpoint"),
    ],
)  # fmt: skip
def test_a_broken_manifest_is_no_manifest(text, told, tmp_path):
    path = made(tmp_path, 3)
    (path / MANIFEST_FILE).write_text(text)
    with pytest.raises(ManifestError, match=told):
        read_manifest(path)
    assert not verify(path).good


def test_the_newest_whole_one_is_found_by_its_step(tmp_path):
    for step in (2, 9, 10):
        made(tmp_path, step)
    (tmp_path / "checkpoint-mine").mkdir()
    (tmp_path / "checkpoint-10" / "weights").unlink()
    good, skipped = newest_good(tmp_path)
    assert (good.step, [one.step for one in skipped]) == (9, [10])
    assert newest_good(tmp_path / "nowhere") == (None, [])


def test_what_cannot_go_on_is_not_gone_on_with(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "weights").touch()
    seal(tmp_path / "checkpoint-1", 1, 2, False, BATCH)
    assert "save_only_model" in verify(tmp_path / "checkpoint-1").problems[0]


def test_one_that_is_replaced_is_there_before_and_after(tmp_path):
    path = made(tmp_path, 3)
    (path / "weights").write_text("broken")
    made(tmp_path, 3)
    assert verify(path).good
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint-3"]


def test_old_ones_go_and_the_new_and_the_best_stay(tmp_path):
    for step in (1, 2, 3, 4, 5):
        made(tmp_path, step)
    # Broken, and passed over when the run went on.
    made(tmp_path, 9)
    (tmp_path / "checkpoint-4" / MANIFEST_FILE).unlink()
    rotate(tmp_path, 5, None, ())
    assert len(list(tmp_path.iterdir())) == 6
    rotate(tmp_path, 5, 3, {"checkpoint-1"})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3", "checkpoint-5"}
    rotate(tmp_path, 5, 1, ())
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5"}


def test_a_writing_that_stops_leaves_what_was_there(tmp_path):
    path = made(tmp_path, 3)
    writing = Writing(tmp_path, 3)
    with pytest.raises(CheckpointError, match="are needed"):
        writing.begin(1 << 60)
    writing.begin(0)
    (writing.partial / "weights").write_text("half")
    assert verify(path).good
    tidy(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint-3"]


def test_the_rows_of_a_step_stay_as_many(tmp_path):
    assert [share_rows(BATCH, processes, 2) for processes in (1, 2, 4)] == [4, 2, 1]
    assert share_rows(BATCH, 1, 8) == 1
    with pytest.raises(UserError, match=r"8 rows a step, which 3 processes .* cannot share evenly"):
        share_rows(BATCH, 3, 2)
    with pytest.raises(UserError, match="cannot share evenly"):
        share_rows(BATCH, 2, 8)


def test_the_verb_says_what_is_wrong(whole, tmp_path, command):
    folder = killed(whole, tmp_path / "out")
    (folder / "checkpoint-6" / "optimizer.pt").write_bytes(b"half")
    finished = command("checkpoints", folder)
    assert finished.returncode == 0
    assert "optimizer.pt: 4 bytes" in " ".join(finished.stdout.split())
    assert "good" in finished.stdout
    missing = command("checkpoints", tmp_path / "nowhere")
    assert (missing.returncode, "is no folder of a run" in missing.stderr) == (2, True)

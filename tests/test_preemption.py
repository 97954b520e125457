"""A process that is asked to end: what it has done stands, it says where it was, and nothing of it is left running."""

import errno
import fcntl
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import FAST, ROOT
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_peft_recipes import (
    PreemptedError,
    UserError,
    get_recipe,
    lock,
    preemption,
    results,
    runner,
    stopping,
    supervision,
)
from hf_peft_recipes.cli.app import app
from hf_peft_recipes.cli.training import _going_on as going_on
from hf_peft_recipes.fresh_process import Finished, outcome, run_module
from hf_peft_recipes.hub import runs as hub_runs

SMALL = {**FAST, "evaluation.max_rows": 4, "data.validation_rows": 4, "max_length": 64, "logging_steps": 1}


class AskedAt(TrainerCallback):
    """Sends this process a signal at an event of a step."""

    def __init__(self, event, step, number=signal.SIGTERM, times=1):
        self._step, self._number, self._times = step, number, times
        setattr(self, event, self._ask)

    def _ask(self, args, state, control, **_):
        if state.global_step == self._step:
            self._step = None
            for _ in range(self._times):
                os.kill(os.getpid(), self._number)


def train(folder, *callbacks, resume=False, max_seconds=None, **settings):
    recipe = get_recipe("lora", callbacks=list(callbacks), **{**SMALL, **settings})
    return recipe.train(folder, progress=False, resume=resume, max_seconds=max_seconds)


def preempted(folder, *callbacks, **settings):
    """Train until asked to end; return the error."""
    with pytest.raises(PreemptedError) as caught:
        train(folder, *callbacks, **settings)
    record = results.read_result(folder)
    assert (record["status"], record["exit_code"]) == ("preempted", 10)
    assert not (folder / "adapter_model.safetensors").exists()
    assert not (folder / lock.LOCK_FILE).exists()
    assert caught.value.folder == folder
    return str(caught.value)


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


def evaluated(record):
    return [point["step"] for point in record["loss_curve"] if "eval_loss" in point]


# The request


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("45m", 2700), ("2h50m", 10200), ("1d2h", 93600), ("90", 90), ("1.5h", 5400), (" 2H ", 7200)],
)
def test_times_as_they_are_given(text, seconds):
    assert preemption.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "2h50", "50m2h", "-3m", "0", "0m", "2 h"])
def test_what_is_no_time(text):
    with pytest.raises(UserError, match="--max_time") as caught:
        preemption.parse_duration(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seconds", [90, 2700, 10200, 93600, 0.5])
def test_times_are_told_as_they_are_given(seconds):
    assert preemption.parse_duration(preemption.shown_duration(seconds)) == seconds


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_outside_of_training_it_ends_at_once(number):
    before = signal.getsignal(number)
    with pytest.raises(PreemptedError, match=f"preempted while loading .{number.name}."), preemption.watching():
        preemption.doing("while loading")
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("it went on")
    assert signal.getsignal(number) is before


def test_in_training_it_ends_where_training_says():
    went_on = False
    with pytest.raises(PreemptedError), preemption.watching():
        with preemption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.requested() == "SIGTERM"
            went_on = True
        raise AssertionError("it was not told")
    assert went_on


def test_who_has_been_told_is_not_told_again_for_the_echo():
    with preemption.watching():
        with preemption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            told = preemption.answer("at step 3", preemption.requested())
        os.kill(os.getpid(), signal.SIGTERM)
    assert (str(told), told.reason) == ("at step 3", "SIGTERM")


class AsksAtItsEnd:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


def in_a_finalizer():
    AsksAtItsEnd()


def in_careless_code():
    with suppress(BaseException):
        AsksAtItsEnd.__del__(None)


@pytest.mark.parametrize("swallow", [in_a_finalizer, in_careless_code])
def test_who_swallows_it_is_told_again(swallow, monkeypatch):
    # That of the tests would hold on to the error.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with pytest.raises(PreemptedError, match="SIGTERM"), preemption.watching():
        swallow()
        time.sleep(60)
        raise AssertionError("it went on")


def test_who_cleans_up_is_left_alone():
    with pytest.raises(PreemptedError), preemption.watching():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            # Longer than it takes to see that an error was swallowed.
            time.sleep(1.2)
            done = True
    assert done


def test_an_error_that_came_first_is_not_replaced():
    with pytest.raises(ZeroDivisionError), preemption.watching():
        try:
            with preemption.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                raise ZeroDivisionError
        finally:
            with preemption.deferred():
                time.sleep(0.6)


def test_blocks_stand_in_each_other():
    with preemption.watching():
        listening = signal.getsignal(signal.SIGTERM)
        with preemption.watching():
            pass
        assert signal.getsignal(signal.SIGTERM) is listening


def test_a_second_interrupt_leaves_at_once(monkeypatch):
    monkeypatch.setattr(preemption, "SAME_PRESS_SECONDS", 0.2)
    with pytest.raises(KeyboardInterrupt), preemption.watching(), preemption.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        # A launcher hands on what the terminal has sent already.
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.25)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_an_ignored_interrupt_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with preemption.watching():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_cannot_listen_and_runs_all_the_same():
    ran = []

    def work():
        with preemption.watching(1):
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran


def test_the_time_limit_wakes_who_waits():
    began = time.monotonic()
    with pytest.raises(PreemptedError, match="time limit of 2h50m"), preemption.watching(10200, 10199.8):
        time.sleep(60)
    assert time.monotonic() - began < 50


def test_no_limit_is_left_behind():
    with preemption.watching(0.3):
        pass
    time.sleep(0.4)


def test_the_time_of_a_launched_process_is_that_of_its_command(monkeypatch):
    assert 0 < preemption.process_age() < 36000
    monkeypatch.setenv(preemption.STARTED_VARIABLE, str(time.time() - 100))
    assert preemption.process_age() == pytest.approx(100, abs=5)


# A run


def test_a_run_goes_on_as_if_nothing_had_been(tmp_path):
    whole = train(tmp_path / "whole", max_steps=6)
    said = preempted(tmp_path / "cut", AskedAt("on_step_begin", 2), max_steps=6)
    assert said == "preempted at step 3 of 6 (SIGTERM); checkpoint-3 is written"
    result = train(tmp_path / "cut", resume=True, max_steps=6)
    assert result.record["status"] == "done"
    expected, found = (load_file(one.folder / "adapter_model.safetensors") for one in (whole, result))
    assert all((expected[name] == found[name]).all() for name in expected)


def test_preempted_at_the_last_step_nothing_is_trained_again(tmp_path):
    said = preempted(tmp_path, AskedAt("on_step_begin", 3), max_steps=4)
    assert said.startswith("preempted at step 4 of 4 ")
    result = train(tmp_path, resume=True, max_steps=4)
    assert result.record["status"] == "done"
    assert [point["step"] for point in result.record["loss_curve"]] == [1, 2, 3, 4]


EPOCHS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_train_epochs": 2}


def rows(number):
    return [{"prompt": f"What is {n}?", "completion": f"{n}."} for n in range(number)]


def test_the_evaluation_of_an_epoch_is_not_lost_and_none_is_made_in_its_middle(tmp_path):
    settings = {**EPOCHS, "dataset": rows(36), "data.validation_size": 4, "eval_strategy": "epoch", "packing": False}
    middle = preempted(tmp_path, AskedAt("on_step_begin", 1), **settings)
    steps = int(re.search(r"of (\d+)", middle)[1])
    assert middle.startswith("preempted at step 2 of ")
    assert evaluated(results.read_result(tmp_path)) == []
    # The data lie in memory: the same rows once more.
    end = preempted(tmp_path, AskedAt("on_step_end", steps // 2), resume=True, **settings)
    assert end.startswith(f"preempted at step {steps // 2} of {steps} ")
    result = train(tmp_path, resume=True, **settings)
    assert evaluated(result.record) == [steps // 2, steps]


@pytest.mark.parametrize("event", ["on_step_begin", "on_prediction_step"])
def test_where_the_best_checkpoint_is_kept_the_last_one_is_too(tmp_path, event):
    """The rate breaks the model in step 2, which is not the best one then; upstream would save nothing."""
    at = 1 if event == "on_step_begin" else 2
    settings = {
        "max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "load_best_model_at_end": True,
        "save_total_limit": 1, "learning_rate": 0.03, "lr_scheduler_type": "constant", "warmup_steps": 0,
    }  # fmt: skip
    said = preempted(tmp_path, AskedAt(event, at), **settings)
    assert said == "preempted at step 2 of 4 (SIGTERM); checkpoint-2 is written"
    assert evaluated(results.read_result(tmp_path)) == [1, 2]
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    record = train(tmp_path, resume=True, **settings).record
    losses = {point["step"]: point["eval_loss"] for point in record["loss_curve"] if "eval_loss" in point}
    assert list(losses) == [1, 2, 3, 4]
    assert record["stopping"]["best_step"] == min(losses, key=losses.__getitem__)


def test_before_its_first_checkpoint_a_run_begins_anew(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(runner, "score_rows", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
        assert preempted(tmp_path, max_steps=1) == "preempted before the first step (SIGUSR1)"
    assert train(tmp_path, resume=True, max_steps=1).record["status"] == "done"
    assert "begins anew" in capsys.readouterr().err


def test_the_time_limit_of_a_run(tmp_path):
    with pytest.raises(PreemptedError, match=r"preempted.* \(time limit of 0.001s\)") as caught:
        train(tmp_path / "out", max_seconds=0.001, max_steps=1)
    assert (caught.value.folder, list(tmp_path.iterdir())) == (None, [])


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    from hf_peft_recipes.checkpoints import writing

    ask = AskedAt("on_step_begin", 2)
    monkeypatch.setattr(writing.Writing, "begin", _full_from(3, writing.Writing.begin))
    said = preempted(tmp_path, ask, max_steps=6, save_strategy="steps", save_steps=2)
    assert said == (
        "preempted at step 3 of 6 (SIGTERM); its checkpoint could not be written, and the last one is checkpoint-2"
    )


def _full_from(step, begin):
    def fail(self, needed):
        if self.step >= step:
            raise OSError(28, "No space left on device")
        begin(self, needed)

    return fail


def test_who_insists_is_out_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(preemption, "SAME_PRESS_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, AskedAt("on_step_begin", 1, signal.SIGINT, times=2), max_steps=3)
    record = results.read_result(tmp_path)
    assert (record["status"], record["exit_code"], checkpoints(tmp_path)) == ("failed", 130, [])


def test_whoever_is_asked_first_all_say_the_same(monkeypatch):
    """The processes of a run, of which the second was asked: what they exchange is answered for the other ones."""
    ending, arguments = stopping.PreemptionEnd(), SimpleNamespace(world_size=2, output_dir="nowhere")
    ending._group = "gloo"
    monkeypatch.setattr(stopping.distributed, "all_reduce", lambda flag, *_, **__: flag.fill_(1))
    monkeypatch.setattr(
        stopping.distributed,
        "all_gather_object",
        lambda reasons, mine, **_: reasons.__setitem__(slice(2), [mine, "SIGUSR1"]),
    )
    state = SimpleNamespace(global_step=3, max_steps=9, epoch=0.5)
    with pytest.raises(PreemptedError, match=r"preempted at step 3 of 9 \(SIGUSR1\)") as caught:
        ending.on_save(arguments, state, SimpleNamespace())
    assert caught.value.reason == "SIGUSR1"


# The command


def test_the_limit_of_a_command_counts_from_its_beginning(tmp_path, monkeypatch, capfd):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setenv(preemption.STARTED_VARIABLE, str(time.time() - 3600))
    words = ["train", "lora", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(PreemptedError, match=r"while loading \(time limit of 1h\)"):
        app([*words, "--max_time", "1h"], standalone_mode=False)
    # There is nothing yet that could go on.
    assert "go on with" not in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--max_time 'soon': a time is wanted"):
        app([*words, "--max_time", "soon"], standalone_mode=False)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("hf-peft-recipes train lora --output_dir out", "hf-peft-recipes train lora --output_dir out --resume"),
        (
            "hf-peft-recipes train lora --output_dir=out --resume",
            "hf-peft-recipes train lora --output_dir=out --resume",
        ),
        ("hf-peft-recipes train lora --overwrite", "hf-peft-recipes train lora --output_dir 'runs/a b' --resume"),
    ],
)
def test_the_command_that_goes_on(command, expected):
    assert going_on(command, Path("runs/a b")) == expected


# Runs of runs


def ended(code, last=""):
    return Finished(["train"], code, "", last)


def test_a_run_that_was_asked_to_end_is_not_taken_for_a_failure():
    with pytest.raises(PreemptedError, match="preempted at step 3 of 9"):
        outcome(ended(10, "step 3\nerror: preempted at step 3 of 9 (SIGTERM)"), None)
    assert outcome(ended(3, "error: no"), None)["status"] == "failed"


CHILD = """
import pathlib, signal, sys, time
from hf_peft_recipes.supervision import follow_parent
follow_parent()
here = pathlib.Path(sys.argv[1])
def save(*_):
    time.sleep(0.3)
    (here / "saved").touch()
    sys.exit("error: preempted at step 3 of 9 (SIGTERM)")
signal.signal(signal.SIGTERM, save)
(here / "ready").touch()
time.sleep(60)
"""


def wait_until(true, seconds=60):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


@pytest.fixture
def child(tmp_path):
    """Return the folder of a module `child`, which saves when it is asked to end."""
    (tmp_path / "child.py").write_text(CHILD)
    return tmp_path


def test_who_waits_for_a_process_hands_the_request_on_and_waits_for_its_end(child):
    def ask():
        wait_until((child / "ready").exists)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=ask).start()
    with pytest.raises(PreemptedError, match=r"^preempted at step 3 of 9") as caught, preemption.watching():
        run_module("child", str(child), paths=[str(child)])
    assert caught.value.reason == "SIGUSR1"
    assert (child / "saved").exists()


def test_a_process_ends_with_the_one_that_waits_for_it(child):
    words = f"from hf_peft_recipes.fresh_process import run_module; run_module('child', {str(child)!r}, paths=[{str(child)!r}])"
    parent = subprocess.Popen([sys.executable, "-c", words], cwd=ROOT)
    wait_until((child / "ready").exists)
    parent.kill()
    parent.wait()
    wait_until((child / "saved").exists)


FOLLOW = "from hf_peft_recipes.supervision import follow_parent; follow_parent(); print('follows')"


@pytest.mark.parametrize(
    ("variables", "orphaned", "said"),
    [
        ({supervision.PARENT_VARIABLE: "1"}, False, "the process that started this one has ended"),
        ({"TORCHELASTIC_RUN_ID": "none"}, True, "the launcher has ended"),
        # A cluster gives ranks to what a shell has started, which may go on alone.
        ({"RANK": "0"}, True, "follows"),
        ({}, True, "follows"),
    ],
)
def test_a_process_that_comes_too_late_finds_its_parent_gone(tmp_path, variables, orphaned, said):
    out = tmp_path / "out"
    command = [sys.executable, "-c", FOLLOW]
    if orphaned:
        # The shell ends before its child begins.
        command = ["sh", "-c", f'(sleep 0.2; exec "$0" "$@" >{out} 2>&1; ) &', *command]
    with out.open("w") as stream:
        subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, stdout=stream, stderr=stream, check=False)
    wait_until(lambda: said in out.read_text(), 20)


@pytest.mark.parametrize(
    ("codes", "launchers", "expected"),
    [
        ({1: 0, 2: 0}, 0, 0),
        ({1: 10, 2: 10}, 1, 10),
        # One has failed, and the launcher has asked the other to end.
        ({1: 3, 2: 10}, 1, 3),
        ({1: 10, 2: 11}, 1, 11),
        ({1: 2, 2: 4}, 1, 2),
        # One was killed.
        ({1: 10, 2: None}, 1, 1),
        ({}, -15, 143),
    ],
)
def test_the_exit_code_of_a_run_is_that_of_its_cause(tmp_path, monkeypatch, codes, launchers, expected):
    monkeypatch.setenv(supervision.WORKERS_VARIABLE, str(tmp_path))
    for pid, code in codes.items():
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        supervision.register()
        if code is not None:
            supervision.leave_code(code)
            time.sleep(0.01)
    assert supervision.exit_code_of(tmp_path, launchers) == expected
    assert supervision.has_told() == any(code is not None for code in codes.values())


# Real processes


WORDS = (
    "train", "lora", "--max_steps", "100000", "--evaluation.max_rows", "4", "--data.validation_rows", "4", "--max_length", "64",
    "--eval_strategy", "no", "--save_strategy", "no", "--certify", "off",
)  # fmt: skip
ACCELERATE = (
    "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
)  # fmt: skip
LAUNCHES = {
    # name: words before those of the run, words after it, the signal, and what the first process ends with
    "accelerate, one": ([*ACCELERATE, "--num_processes", "1", "-m"], [], signal.SIGTERM, {-15}),
    "torchrun": (["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m"], [], signal.SIGTERM, {1}),
    "ours, two": (["-m"], ["--num_processes", "2"], signal.SIGUSR1, {10}),
    "ours, killed": (["-m"], ["--num_processes", "1"], signal.SIGKILL, {-9}),
}


def running(folder):
    """Return the processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


ALWAYS = ("accelerate, one", "ours, two")


# A fork has another parent, and none of its words in its command line.
@pytest.mark.usefixtures("real_processes")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow_sweep) for name in LAUNCHES]
)
def test_nothing_is_left_running(tmp_path, name):
    before, after, number, codes = LAUNCHES[name]
    out, said = tmp_path / "out", tmp_path / "said"
    with said.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *before, "hf_peft_recipes", *WORDS, "--output_dir", str(out), *after], cwd=ROOT,
            stdout=stream, stderr=stream, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        wait_until(lambda: "step 1/" in said.read_text() or process.poll() is not None, 200)
        process.send_signal(number)
        assert process.wait(60) in codes, said.read_text()
        wait_until(lambda: not running(out))
    finally:
        for pid in running(out):
            os.kill(pid, signal.SIGKILL)
    record = results.read_result(out)
    assert (record["status"], record["exit_code"]) == ("preempted", 10)
    step = re.search(r"preempted at step (\d+) of 100000", record["error"])[1]
    assert checkpoints(out) == [f"checkpoint-{step}"]
    assert not (out / lock.LOCK_FILE).exists()
    text = said.read_text()
    # Once, with the command that goes on.
    assert len(re.findall(rf"error: preempted at step {step} of 100000 .*exit code 10", text)) == 1
    assert shlex.join(["--output_dir", str(out), *after, "--resume"]) in text
    assert name == "torchrun" or "Traceback" not in text


def test_while_it_is_published_the_run_is_done(tmp_path, monkeypatch):
    def cut_off(*_):
        raise PreemptedError("preempted while publishing a run that is done (SIGTERM)")

    monkeypatch.setattr(hub_runs, "push", cut_off)
    record = {"schema_version": results.SCHEMA_VERSION, "status": "done", "exit_code": 0}
    results.write_result(tmp_path, record)
    with pytest.raises(PreemptedError):
        hub_runs.publish_run(tmp_path, None, record)
    assert results.read_result(tmp_path) == record == {**record, "status": "done", "exit_code": 10}


# The lock


HOLD = """
import sys, time
from pathlib import Path
from hf_peft_recipes.lock import sole_writer
with sole_writer(Path(sys.argv[1]), "sweep"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Return a process that holds the folder `out`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_two_processes_in_one_folder_are_impossible(tmp_path, holder, capsys):
    with pytest.raises(UserError) as caught:
        train(tmp_path / "out", max_steps=1)
    said = str(caught.value)
    assert f"a sweep is running in '{tmp_path}/out' (process {holder.pid} on {socket.gethostname()}, since 20" in said
    assert "\n" not in said
    holder.kill()
    holder.wait()
    with lock.sole_writer(tmp_path / "out", "run"):
        assert f"left by process {holder.pid} on" in capsys.readouterr().err
        with (
            pytest.raises(UserError, match=f"a run is running in .*process {os.getpid()} on"),
            lock.sole_writer(tmp_path / "out", "run"),
        ):
            pass
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    with pytest.raises(UserError, match="no such"), lock.sole_writer(tmp_path / "a" / "b", "run"):
        raise UserError("no such thing")
    assert not list(tmp_path.iterdir())


def test_a_lock_that_cannot_be_removed_ends_no_run_and_holds_nobody_up(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, lock.sole_writer(tmp_path / "out", "run"):
        patch.setattr(Path, "unlink", fails)
    assert (tmp_path / "out" / lock.LOCK_FILE).is_file()
    with lock.sole_writer(tmp_path / "out", "run"):
        pass
    assert not any((tmp_path / "out").iterdir())


def test_a_lock_that_is_removed_meanwhile_is_nobodys(tmp_path, monkeypatch):
    """Another run ends between the opening of its lock and the locking of it: that file is no lock any more."""
    path, locking, opened = tmp_path / lock.LOCK_FILE, lock._lock, []
    path.touch()

    def late(handle, folder):
        if not opened:
            path.unlink()
        opened.append(handle)
        locking(handle, folder)

    monkeypatch.setattr(lock, "_lock", late)
    with lock.sole_writer(tmp_path, "run"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert len(opened) == 2
    assert not path.exists()


def test_what_still_reads_for_a_run_that_was_killed_is_waited_for(tmp_path, monkeypatch):
    """A worker that reads data was forked with the lock open, and ends some moments after the run."""
    monkeypatch.setattr(lock, "_is_gone", lambda holder: True)
    monkeypatch.setattr(lock, "_LINGERING_SECONDS", 20)
    held = (tmp_path / lock.LOCK_FILE).open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    threading.Timer(0.4, held.close).start()
    with lock.sole_writer(tmp_path, "run"):
        pass


def test_a_folder_without_permission_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(UserError, match="cannot be written: Permission denied"),
        lock.sole_writer(tmp_path / "out", "run"),
    ):
        pass

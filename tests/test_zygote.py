"""Forks that stand for processes: as real ones, where tests look, and real ones where forks would not be."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
import zygote
from zygote.client import MARK

from hf_peft_recipes.device import detect_device

TELL = MARK + (
    "import json, os, random, sys, numpy\n"
    "told = {'torch': 'torch' in sys.modules, 'transformers': 'transformers' in sys.modules, 'words': sys.argv,\n"
    "    'folder': os.getcwd(), 'variable': os.environ.get('HF_PEFT_RECIPES_SAID'), 'names': sorted(globals()),\n"
    "    'random': [random.random(), numpy.random.random()], 'path': sys.path[:2], 'read': sys.stdin.read(),\n"
    "    'ours': [name for name in sys.modules if name.startswith('hf_peft_recipes')], 'threads': len(os.listdir('/proc/self/task'))}\n"
    "print(json.dumps(told)); print('aside', file=sys.stderr); sys.exit(7)\n"
)
WAIT = MARK + "import time; print('here', flush=True); time.sleep(600)"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or detect_device().kind != "cpu", reason="there is no zygote elsewhere"
)


def tell(tmp_path, *words, **options):
    environment = {**os.environ, "HF_PEFT_RECIPES_SAID": "word", **options.pop("env", {})}
    finished = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, input="in", capture_output=True, text=True, check=False,
        **options,
    )  # fmt: skip
    assert finished.returncode == 7 and finished.stderr == "aside\n", finished.stderr
    return json.loads(finished.stdout)


def test_a_fork_is_as_the_process_would_be(tmp_path):
    forked, again = (tell(tmp_path, "-c", TELL, "a", "b c") for _ in range(2))
    assert forked["torch"] and forked["transformers"]
    real = tell(tmp_path, "-c", TELL.removeprefix(MARK), "a", "b c")
    assert not real["torch"]
    assert forked.pop("random") != again["random"] and real.pop("random")
    varying = ("torch", "transformers", "names", "path", "threads")
    assert {**forked, **dict.fromkeys(varying)} == {**real, **dict.fromkeys(varying)}
    assert (forked["words"], forked["read"], forked["variable"]) == (["-c", "a", "b c"], "in", "word")
    assert set(forked["names"]) - set(real["names"]) == set()


@pytest.mark.parametrize(
    "options",
    [
        {"env": {"OMP_NUM_THREADS": "7"}},
        {"env": {"PYTHONPATH": "/elsewhere"}},
        {"umask": 0o27},
        {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))},
        {"preexec_fn": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN)},
    ],
)
def test_what_a_fork_would_not_be_like_is_a_real_process(tmp_path, options):
    assert not tell(tmp_path, "-c", TELL, **options)["torch"]


def test_another_hub_is_read_at_import(tmp_path):
    told = tell(tmp_path, "-c", TELL, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert told["torch"] and not told["transformers"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("apart", [False, True])
def test_signals_reach_a_fork_and_its_end_is_told(tmp_path, number, apart):
    with subprocess.Popen(
        [sys.executable, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=apart
    ) as waiting:
        assert waiting.stdout.readline() == b"here\n"
        (os.killpg if apart else os.kill)(waiting.pid, number)
        # Both ends are closed when the fork itself has ended.
        _, said = waiting.communicate(timeout=150)
    # Where peft is imported, Python ends an interrupted process so.
    assert waiting.returncode == (1 if number == signal.SIGINT else -number)
    assert (b"KeyboardInterrupt" in said) is (number == signal.SIGINT)


def test_a_real_process_on_demand(real_processes, tmp_path):
    assert sys.executable == zygote.PYTHON
    assert not tell(tmp_path, "-c", TELL)["torch"]

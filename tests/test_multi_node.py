"""Two machines, as two network namespaces that a cable joins: the guide's own commands, over gloo."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

GUIDE = ROOT / "docs" / "multi_node.md"
SBATCH = ROOT / "docs" / "slurm" / "train.sbatch"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
SHORT = (
    "--max_steps 2 --evaluation.max_rows 4 --data.validation_rows 4 --save_strategy no --eval_strategy no "
    "--certify off --max_length 128"
)


def commands(part):
    """The commands of the guide below a heading, by the word that they begin with."""
    section = GUIDE.read_text().split(f"## {part}\n")[1].split("\n## ")[0]
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL)).splitlines()
    return {line.split()[0]: line for line in lines if line and not line.startswith("export")}


@pytest.fixture(scope="module")
def machines():
    """Process ids of two sleepers, each in a network namespace of its own with an `eth0` to the other one."""
    ip = shutil.which("ip") or "/usr/sbin/ip"
    sleepers = [
        subprocess.Popen(["unshare", "--user", "--map-root-user", "--net", "sleep", "600"]) if os.geteuid()
        else subprocess.Popen(["unshare", "--net", "sleep", "600"])
        for _ in ADDRESSES
    ]  # fmt: skip
    try:
        for _ in range(100):
            names = {Path(f"/proc/{one.pid}/ns/net").readlink() for one in sleepers}
            if len(names | {Path("/proc/self/ns/net").readlink()}) == 3:
                break
            subprocess.run(["sleep", "0.05"], check=True)
        else:
            pytest.fail("this machine gives out no network namespaces (unshare --net), which this test is made of")
        first, second = (str(one.pid) for one in sleepers)
        inside = ["nsenter", "--net", "--target"]
        if os.geteuid():
            inside = ["nsenter", "--user", "--preserve-credentials", "--net", "--target"]
        run([*inside, first, ip, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second])
        for pid, address in zip((first, second), ADDRESSES, strict=True):
            run([*inside, pid, ip, "address", "add", f"{address}/24", "dev", "eth0"])
            for device in ("lo", "eth0"):
                run([*inside, pid, ip, "link", "set", device, "up"])
        yield [[*inside, pid] for pid in (first, second)]
    finally:
        for one in sleepers:
            one.kill()
            one.wait()


def run(command):
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        pytest.fail(f"two machines cannot be made of namespaces here: {' '.join(command)}: {finished.stderr.strip()}")


@pytest.fixture
def tools(tmp_path):
    """A folder to be put before PATH: the installed commands, as this checkout has them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, module in (("hf-peft-recipes", "hf_peft_recipes"), ("accelerate", "accelerate.commands.accelerate_cli")):
        write(folder / name, f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
    return folder


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def environment(tools, **more):
    known = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    return known | {"PATH": f"{tools}:{os.environ['PATH']}"} | more


def record(folder):
    return json.loads((folder / "result.json").read_text())


def one_run(machines, tools, line, folder):
    """Start a line of the guide on both machines; return what each printed."""
    started = [
        subprocess.Popen(
            [*inside, "bash", "-c", f"{line} {SHORT}"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=environment(tools, MAIN_IP=ADDRESSES[0], MACHINE_RANK=str(rank)),
        )
        for rank, inside in enumerate(machines)
    ]  # fmt: skip
    try:
        said = [one.communicate(timeout=200)[0] for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [0, 0], "\n".join(said)
    return said


def test_two_machines_are_one_run(machines, tools, tmp_path):
    first, second = one_run(machines, tools, commands("Several machines")["hf-peft-recipes"], tmp_path)
    found = record(tmp_path / "out-nodes")
    assert found["hardware"]["processes"] == 2
    assert found["status"] == "done" and found["measured"]["steps"] == 2
    assert first.count("trainable parameters") == 1 and "trainable parameters" not in second


@pytest.mark.slow_sweep
def test_two_machines_by_accelerates_own_launcher(machines, tools, tmp_path):
    one_run(machines, tools, commands("Several machines")["accelerate"], tmp_path)
    assert record(tmp_path / "out-accelerate")["hardware"]["processes"] == 2


def slurm(tools, srun, exit_code=0):
    """Put commands of Slurm's names before PATH, which do for this job what it needs of them."""
    write(
        tools / "scontrol", f'#!/bin/bash\necho "$@" >> {tools}/scontrol.log\n[ "$1" = show ] && echo {ADDRESSES[0]}\n'
    )
    write(tools / "srun", srun)
    return {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NAME": "j", "SLURM_JOB_ID": "77"}


@pytest.mark.slow_sweep
def test_the_slurm_script_on_two_machines(machines, tools, tmp_path):
    nodes = "\n".join(
        f'SLURM_NODEID={rank} {" ".join(inside)} "$@" & pids+=($!)' for rank, inside in enumerate(machines)
    )
    job = slurm(
        tools, f'#!/bin/bash\nshift\npids=()\n{nodes}\nfor pid in "${{pids[@]}}"; do wait "$pid" || exit $?; done\n'
    )
    finished = subprocess.run(
        ["bash", str(SBATCH), *SHORT.split()], cwd=tmp_path, env=environment(tools, **job), capture_output=True,
        text=True, timeout=250, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert record(tmp_path / "out-j")["hardware"]["processes"] == 2


def job_with(tools, tmp_path, srun, **more):
    job = slurm(tools, f"#!/bin/bash\n{srun}\n")
    return subprocess.Popen(["bash", str(SBATCH)], cwd=tmp_path, env=environment(tools, **job, **more))


@pytest.mark.parametrize(("code", "asked"), [(10, True), (0, False), (3, False)])
def test_a_job_that_was_told_to_end_goes_back_into_the_queue(code, asked, tools, tmp_path):
    assert job_with(tools, tmp_path, f"exit {code}").wait(20) == code
    assert ("requeue 77" in (tools / "scontrol.log").read_text()) is asked


def test_the_signal_reaches_the_run_and_its_end_is_waited_for(tools, tmp_path):
    told = 'trap "sleep 1; exit 10" USR1; touch up; for i in {1..200}; do sleep 0.1; done; exit 1'
    job = job_with(tools, tmp_path, told)
    for _ in range(100):
        if (tmp_path / "up").exists():
            break
        subprocess.run(["sleep", "0.1"], check=True)
    job.send_signal(10)
    assert job.wait(20) == 10
    assert "requeue 77" in (tools / "scontrol.log").read_text()


@pytest.mark.parametrize(
    ("count", "checkpoint", "flag"), [("0", False, ""), ("1", True, "--resume"), ("1", False, "--overwrite")]
)
def test_a_job_that_is_started_again_goes_on(count, checkpoint, flag, tools, tmp_path):
    if checkpoint:
        folder = tmp_path / "out-j" / "checkpoint-2"
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    assert job_with(tools, tmp_path, 'echo "${@: -1}" > last', SLURM_RESTART_COUNT=count).wait(20) == 0
    assert (tmp_path / "last").read_text().strip() == (flag or "train")

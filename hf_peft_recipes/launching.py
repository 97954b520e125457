"""Several processes: what was asked for, what came up, and starting the launcher itself."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_peft_recipes import supervision
from hf_peft_recipes.errors import LaunchError, UserError, did_you_mean

CONFIGS_FOLDER = Path(__file__).parent / "accelerate_configs"
ASKED_VARIABLE = "HF_PEFT_RECIPES_NUM_PROCESSES"
"""Set by our own launcher for its children: how many processes the user asked for."""


@dataclass(frozen=True)
class World:
    """The processes of one run, as one of them sees them."""

    rank: int
    size: int
    kind: str
    """accelerate's name of the engine: `NO`, `MULTI_GPU`, `MULTI_CPU`, `FSDP`, `DEEPSPEED` …"""

    shards: bool = False
    """Whether a pass through the model takes all processes, each of which may hold a part of it alone."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0


def rank_from_environment() -> int:
    """Return this process's rank as the launcher set it, before torch is imported."""
    return int(os.environ.get("RANK", "0"))


def size_from_environment() -> int:
    """Return how many processes the launcher says there are, before torch is imported."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise a LaunchError when the launcher's variables already show that the run would not be what was asked for."""
    if "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        raise LaunchError(
            "the launcher asked for several processes and started one (accelerate does so with --cpu or MULTI_CPU); "
            "use `hf-peft-recipes train … --num_processes N`, or `accelerate launch --multi_gpu --num_processes N`"
        )
    asked = environment.get(ASKED_VARIABLE)
    started = environment.get("WORLD_SIZE", "1")
    if asked is not None and int(asked) != int(started):
        raise LaunchError(f"{asked} processes were asked for and {started} came up")


def check_world(world: World, environment: Mapping[str, str]) -> None:
    """Raise a LaunchError when the processes that work together are not those that the launcher was asked for.

    Args:
        world: what came up, as accelerate reports it.
        environment: the launcher's variables.
    """
    asked = int(environment.get("WORLD_SIZE", "1"))
    if world.size != asked:
        raise LaunchError(
            f"{asked} processes were asked for, but this one trains in a world of {world.size}: they would train apart "
            f"in one folder. On a CPU, `--use_cpu true` joins them; see `--accelerate_config ddp`"
        )
    for variable, kind in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED")):
        # On GPUs processes are joined first; what they then work by is known once there is a trainer (`engines`).
        if environment.get(variable, "false").lower() == "true" and world.kind in ("NO", "MULTI_CPU"):
            raise LaunchError(f"{kind} was asked for and {world.kind} came up; {kind} has no path on this device")


def config_path(name: str) -> Path:
    """Return the file of an accelerate configuration: one that ships (`ddp`, `fsdp2` …), or the user's own path.

    Raises:
        UserError: there is none of that name.
    """
    own = Path(name).expanduser()
    if own.suffix in (".yaml", ".yml", ".json"):
        if not own.is_file():
            raise UserError(f"accelerate configuration {name!r} does not exist")
        return own
    names = sorted(path.stem for path in CONFIGS_FOLDER.glob("*.yaml"))
    if name not in names:
        raise UserError(
            f"unknown accelerate configuration {name!r}{did_you_mean(name, names)} (shipped: {', '.join(names)})"
        )
    return CONFIGS_FOLDER / f"{name}.yaml"


MACHINE_FLAGS = ("num_machines", "machine_rank", "main_process_ip", "main_process_port")
"""Of `accelerate launch`, and of `train`: which machine this is, and where the first one is."""


def machine_options(given: Mapping[str, str | int | None]) -> list[str]:
    """Return the words by which accelerate's launcher is told of several machines.

    Args:
        given: values by the names of `MACHINE_FLAGS`; None where a flag is not given.

    Raises:
        UserError: some are given, and one is missing without which machines do not find each other.
    """
    named = {name: value for name, value in given.items() if value is not None}
    machines = int(named.get("num_machines") or 1)
    missing = [name for name in MACHINE_FLAGS if name not in named] if machines > 1 else []
    if missing:
        raise UserError(f"--num_machines {machines} needs --{missing[0]} too")
    return [word for name, value in named.items() for word in (f"--{name}", str(value))]


def launch(
    arguments: Sequence[str],
    num_processes: int,
    accelerate_config: str | None,
    on_cpu: bool,
    command: Sequence[str],
    options: Sequence[str] = (),
    num_machines: int = 1,
) -> int:
    """Run `python -m hf_peft_recipes` with `arguments` in several processes; return the exit code.

    Args:
        arguments: words of the command line, without those that concern the launch.
        num_processes: how many processes to start, on all machines together.
        accelerate_config: name or path of an accelerate configuration; None takes `single` for one process, else `ddp`.
        on_cpu: whether the processes are to work together over gloo on the CPU.
        command: the words as the user gave them, for the run's record.
        options: further words for accelerate's launcher, as `machine_options` makes them.
        num_machines: that share the processes out among them.

    Raises:
        UserError: no such configuration, or fewer than one process a machine.
    """
    if num_processes < 1:
        raise UserError(f"--num_processes {num_processes}: at least 1 is wanted")
    if num_processes % num_machines:
        raise UserError(
            f"--num_processes {num_processes} is the number on all {num_machines} machines, each of which has as many"
        )
    path = config_path(accelerate_config or ("single" if num_processes == 1 else "ddp"))
    environment = {**os.environ, ASKED_VARIABLE: str(num_processes)}
    environment[supervision.COMMAND_VARIABLE] = shlex.join(command)
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    # Threads of several processes on the same cores hinder each other.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) * num_machines // num_processes)))
    words = ["--config_file", str(path), "--num_processes", str(num_processes), *options]
    return supervision.launch_workers([*words, "-m", "hf_peft_recipes", *arguments], environment)

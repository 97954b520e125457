"""The zygote: a process that has imported the libraries, and forks for each command that asks it to.

`python server.py CLIENT BARE WHOLE` serves on two sockets that are open already. Behind WHOLE all libraries are imported,
with the zygote's own environment; behind BARE those alone that read nothing about a Hub from it. They are imported when
the first command comes; standard input that ends is the end.
"""

import contextlib
import gc
import importlib
import os
import runpy
import select
import selectors
import signal
import socket
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import client

BARE = (
    "numpy", "torch", "torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "pandas", "pyarrow.parquet",
    "pyarrow.compute", "pyarrow.dataset", "scipy.stats", "matplotlib.pyplot", "jsonschema", "jinja2", "psutil",
    "matplotlib.backends.backend_agg", "regex", "safetensors.torch", "tokenizers", "typer", "rich.console", "rich._emoji_codes", "yaml",
)  # fmt: skip
WHOLE = (
    "datasets", "transformers.trainer", "accelerate", "bitsandbytes", "peft", "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer", "optuna", "transformers.models.llama.modeling_llama",
)  # fmt: skip
"""What reads a Hub's address and folders from the environment while it is imported."""
HUBS = ("HF_", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK", "NO_PROXY", "no_proxy")
"""Variables, or their beginnings, that WHOLE alone reads."""
FREE = (
    "HF_PEFT_RECIPES_", "PYTEST_CURRENT_TEST", "COLUMNS", "LINES", "NO_COLOR", "PYTHONPATH", "ACCELERATE_", "TORCHELASTIC_", "TORCH_NCCL_",
    "RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "TORCHINDUCTOR_CACHE_DIR", "MASTER_",
)  # fmt: skip
"""Those that are read when they are needed, or looked at here."""
PARENT = "HF_PEFT_RECIPES_PARENT"
"""Names the process that a command is to end with, `supervision.bound`: looked after here, being the fork's no parent."""
OURS = str(Path(__file__).resolve().parent.parent.parent)
USUAL = dict(os.environ)
SITUATION = client.situation()
SESSION = os.getsid(0)
LOG = USUAL.get("ZYGOTE_LOG")
"""A file for a line about each command: whether a fork runs it, and if not, for what."""
INSTALLED = [path for path in sys.path[1:] if path not in USUAL.get("PYTHONPATH", "").split(os.pathsep)]


@dataclass
class Command:
    """A command line that a fork is to run."""

    words: list[str]
    flags: list[str]
    """Of Python itself, `-u` and `-P`."""
    folder: str
    environment: dict[str, str]
    situation: list[object]
    groups: list[int]
    handles: list[int]

    def differs(self) -> set[str]:
        """Return the names of variables that have other values here than in the zygote, and matter at import."""
        names = {name for name, _ in USUAL.items() ^ self.environment.items() if not name.startswith(FREE)}
        known = {"", OURS, *USUAL.get("PYTHONPATH", "").split(os.pathsep)}
        return names | ({"PYTHONPATH"} if set(self.paths()) - known else set())

    def paths(self) -> list[str]:
        """Return the folders of PYTHONPATH."""
        return [path for path in self.environment.get("PYTHONPATH", "").split(os.pathsep) if path]

    def run(self) -> None:
        """Do in this process what Python does in one of its own."""
        session, group = self.groups
        # A group stands for a session of its own: what it starts can then be forked from here too.
        os.setpgid(0, group if session else 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, handle in enumerate(self.handles):
            os.dup2(handle, number)
            os.close(handle)
        os.chdir(self.folder)
        for name in USUAL.keys() - self.environment.keys():
            os.environ.pop(name, None)
        os.environ.update(self.environment)
        # The client, which ends as the fork does, follows in its place.
        os.environ.pop(PARENT, None)
        sys.path[:] = [*([] if "-P" in self.flags else [self.folder]), *self.paths(), *INSTALLED]
        sys.executable = sys.argv[1]
        kind, what, *sys.argv[1:] = self.words
        if "-u" in self.flags:
            sys.stdout.reconfigure(line_buffering=True)
        importlib.invalidate_caches()
        # Python's own generator is seeded anew by a fork, numpy's is not.
        sys.modules["numpy"].random.seed()
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        if kind == "-m":
            runpy._run_module_as_main(what)
        else:
            sys.argv[0] = kind
            exec(compile(what, "<string>", "exec"), main.__dict__)


def answer_to(command: Command, whole: bool) -> str:
    """Return `fork` where that is as good as a real process, `bare` where it is from that socket, else `real`."""
    differs = command.differs()
    others = sorted(name for name in differs if not name.startswith(HUBS))
    others += [f"{new}≠{own}" for new, own in zip(command.situation, SITUATION, strict=True) if new != own]
    others += ["the session"] if command.groups[0] not in (0, SESSION) else []
    answer = "real" if others else "bare" if whole and differs else "fork"
    if LOG and answer != "bare":
        with Path(LOG).open("a", encoding="utf-8") as file:
            print(answer, *others, command.environment.get("PYTEST_CURRENT_TEST"), *command.words, file=file)
    return answer


def load(modules: tuple[str, ...]) -> None:
    """Import modules, for good."""
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


class Zygote:
    """What listens on one of the sockets, and looks after its forks."""

    def __init__(self, listener: socket.socket, missing: tuple[str, ...] = ()) -> None:
        self._listener, self._missing, self._whole = listener, missing, bool(missing)
        self._forks: dict[int, tuple[int, socket.socket]] = {}
        self._parents: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> Command | None:
        """Fork for each command; return it in its fork, and None at the end."""
        while True:
            for key, _ in self._selector.select():
                if key.fd == 0:
                    return None
                if key.fileobj is self._listener:
                    if command := self._begin():
                        return command
                elif key.fd in self._forks:
                    self._end(key.fd)
                elif key.fd in self._parents:
                    self._orphan(key.fd)
                elif key.fd in self._selector.get_map():
                    self._hand_on(key.data, key.fileobj)

    def _begin(self) -> Command | None:
        connection, _ = self._listener.accept()
        told, handles, _, _ = socket.recv_fds(connection, 2 * client.AT_MOST_BYTES, 3)
        command = Command(*client.marshal.loads(told), handles)
        answer = answer_to(command, self._whole)
        if answer == "fork":
            load(self._missing)
            self._missing = ()
            pid = os.fork()
            if not pid:
                # A copy of another command's connection would keep its end from being seen.
                for held in (self._selector, self._listener, connection, *(other for _, other in self._forks.values())):
                    held.close()
                for end in (*self._forks, *self._parents):
                    os.close(end)
                return command
            end = os.pidfd_open(pid)
            self._forks[end] = pid, connection
            self._selector.register(end, selectors.EVENT_READ)
            self._selector.register(connection, selectors.EVENT_READ, pid)
            if parent := command.environment.get(PARENT):
                self._follow(int(parent), pid)
        for handle in handles:
            os.close(handle)
        connection.send(answer.encode())
        if answer != "fork":
            connection.close()
        return None

    def _follow(self, parent: int, pid: int) -> None:
        """Let a fork be asked to end where the process has ended on whose behalf it runs."""
        try:
            self._parents[end := os.pidfd_open(parent)] = pid
        except ProcessLookupError:
            os.kill(pid, signal.SIGTERM)
        else:
            self._selector.register(end, selectors.EVENT_READ)

    def _orphan(self, end: int) -> None:
        self._selector.unregister(end)
        os.close(end)
        pid = self._parents.pop(end)
        if any(pid == fork for fork, _ in self._forks.values()):
            os.kill(pid, signal.SIGTERM)

    def _hand_on(self, pid: int, connection: socket.socket) -> None:
        if told := connection.recv(1):
            os.kill(pid, told[0])
            return
        # Whoever stood for the fork was killed, and so is the fork; with its group, where it leads one.
        self._selector.unregister(connection)
        (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, signal.SIGKILL)

    def _end(self, end: int) -> None:
        pid, connection = self._forks.pop(end)
        for parent in [one for one, fork in self._parents.items() if fork == pid]:
            self._selector.unregister(parent)
            os.close(parent)
            del self._parents[parent]
        self._selector.unregister(end)
        os.close(end)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
            with contextlib.suppress(BrokenPipeError):
                connection.send(str(code).encode())
        connection.close()


def main(bare: socket.socket, whole: socket.socket) -> None:
    """Serve on both sockets."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if 0 in select.select([0, bare, whole], [], [])[0]:
        return
    load(BARE)
    other = os.fork()
    (whole if other else bare).close()
    command = (Zygote(bare) if other else Zygote(whole, WHOLE)).serve()
    if command:
        command.run()
    elif other:
        os.waitpid(other, 0)


if __name__ == "__main__":
    main(*(socket.socket(fileno=int(word)) for word in sys.argv[2:]))

"""Commands of ours as forks of a process that has imported the libraries, in place of processes that import them anew.

Importing takes 4 to 8 s of a core, and tests start processes by the hundred. In `started()`, `sys.executable` is a small
program (`client.py`) that has the zygote (`server.py`) fork for `-m hf_peft_recipes …`, in the client's folder, environment
and process group, on its standard input and output, and hands on signals and the exit code: tests, and the code under test,
start processes as ever. `-m accelerate…` and scripts that begin with `client.MARK` go the same way.

Anything else becomes the real Python, and so does what a fork would not be like: another environment (but for the Hub's
variables, for which less is imported beforehand), other limits, namespaces or ignored signals, a terminal. What a fork does
not show is how Python starts, how long importing takes and what it says, what a process takes in memory, another seed of
hashes, another parent, and a session of its own: tests of these ask for `real_processes` (memory for `whole_libraries`), and so
does one test of each kind of verb. `ZYGOTE_LOG=FILE` has a line written for each command: a fork or not, and if not, for what.
"""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_peft_recipes.device import detect_device

PYTHON = sys.executable
"""The real one."""
_HERE = Path(__file__).parent


@contextmanager
def started() -> Iterator[None]:
    """Let `sys.executable` be the client of a zygote; leave it as it is where there can be none."""
    # What CUDA has begun in a process, its forks cannot use.
    if sys.platform != "linux" or detect_device().kind != "cpu":
        yield
        return
    with tempfile.TemporaryDirectory(prefix="zygote-") as folder:
        program = Path(folder, "python")
        program.write_text(f"#!{PYTHON} -IS\n{(_HERE / 'client.py').read_text(encoding='utf-8')}", encoding="utf-8")
        program.chmod(0o755)
        bare, whole = (_listener(folder, name) for name in ("bare", "whole"))
        handles = bare.fileno(), whole.fileno()
        command = [PYTHON, str(_HERE / "server.py"), str(program), *map(str, handles)]
        with bare, whole:
            zygote = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=handles)
        sys.executable = str(program)
        try:
            yield
        finally:
            sys.executable = PYTHON
            zygote.communicate()


def _listener(folder: str, name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{folder}/{name}")
    listener.listen(64)
    return listener

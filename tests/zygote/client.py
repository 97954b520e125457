"""Stands at `sys.executable` in tests: has the zygote fork for a command of ours, becomes the real Python for all else.

Started by the hundred, so it imports nothing that Python does not hold already. Its folder holds the zygote's sockets.
"""

import _signal
import _socket
import array
import marshal
import os
import sys

_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
AT_MOST_BYTES = 100_000
MODULES = ("hf_peft_recipes", "benchmarks", "accelerate")
MARK = "# in a fork\n"
"""How code begins that may run in a fork."""
_GONE = 70


def situation() -> list[object]:
    """Return what a process has from whoever started it; a fork has the zygote's, so it must be the same."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        kept = ("Uid", "Gid", "Groups", "SigBlk", "SigIgn", "NoNewPrivs", "Seccomp", "Cpus_allowed_list")
        status = [line for line in file if line.startswith(kept)]
    with open("/proc/self/limits", encoding="ascii") as file:
        limits = file.read()
    spaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "user", "pid", "net")]
    os.umask(mask := os.umask(0o77))
    return [*status, limits, *spaces, mask, os.nice(0)]


def groups() -> list[int]:
    """Return session and process group, each 0 where this process leads it."""
    return [0 if number == os.getpid() else number for number in (os.getsid(0), os.getpgrp())]


def part_of(words: list[str]) -> list[str] | None:
    """Return what of a command line a fork runs: `-m` with a module, or `-c` with code, and its words; None for others."""
    while words[:1] in (["-u"], ["-P"]):
        words = words[1:]
    kind, what = words[:2] if len(words) > 1 else ("", "")
    if kind == "-m" and what.split(".")[0] in MODULES:
        return words
    return words if kind == "-c" and what.startswith(MARK) else None


def forked(words: list[str]) -> _socket.socket | None:
    """Return the connection to the fork that runs a command line; None where that is for a real process."""
    part = part_of(words)
    if part is None or any(map(os.isatty, (0, 1, 2))):
        return None
    told = marshal.dumps([part, words[: len(words) - len(part)], os.getcwd(), dict(os.environ), situation(), groups()])
    if len(told) > AT_MOST_BYTES:
        return None
    for zygote in ("whole", "bare"):
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            connection.connect(os.path.join(os.path.dirname(__file__), zygote))
            handles = array.array("i", (0, 1, 2))
            connection.sendmsg([told], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, handles)])
            answer = connection.recv(16)
        except OSError:
            return None
        if answer == b"fork":
            return connection
        if answer != b"bare":
            return None
    return None


def follow(connection: _socket.socket) -> None:
    """Hand signals on to the fork, and end as it ends."""

    def forward(number: int, _: object) -> None:
        connection.send(bytes([number]))

    for name in _FORWARDED:
        _signal.signal(getattr(_signal, name), forward)
    answer = connection.recv(16)
    if not answer:
        os.write(2, b"the zygote of the tests has gone\n")
        os._exit(_GONE)
    code = int(answer)
    if code < 0:
        if -code != _signal.SIGKILL:
            _signal.signal(-code, _signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    running = forked(sys.argv[1:])
    if running is None:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    follow(running)

"""The process in which a model's code runs: limits first, then the code, then the tests, then the word that proves it.

What went wrong is told on a descriptor of its own, where nothing that is said can pass for the word.

Started by `sandbox` as a script, in an isolated interpreter; it imports nothing of this package.
"""

import os
import resource
import sys
import sysconfig
from pathlib import Path

_READABLE = tuple({os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())})
_DENIED = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "pty.",
    "ctypes.", "os.chown", "os.chmod", "os.link", "os.symlink", "os.setxattr", "os.removexattr", "resource.setrlimit",
    "os.chdir", "os.fchdir", "sys.settrace", "sys.setprofile", "gc.get_",
)  # fmt: skip
"""How the names of audit events begin that are refused whatever they are about."""
REASON_BYTES = 1000
"""Less than a pipe holds, so that who tells it never waits."""
_CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate")


def guard(folder: str) -> None:
    """Let Python refuse, from now on, what code has no business with: the network, processes, files elsewhere."""

    def inside(path: object, *roots: str) -> bool:
        if isinstance(path, int):
            return True
        real = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        return any(real == root or real.startswith(root + os.sep) for root in roots)

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            # A handle of a folder elsewhere would let names lead out of here.
            handle = isinstance(flags, int) and flags & os.O_DIRECTORY
            roots = (folder,) if writes or handle else (folder, *_READABLE, "/dev/null", "/dev/urandom", "/usr/share")
            if not inside(path, *roots):
                raise PermissionError(f"{path!r} lies outside")
        elif event in _CHANGING:
            named = [value for value in arguments if isinstance(value, (str, bytes))]
            handles = [value for value in arguments if isinstance(value, int) and value != -1]
            if (handles and event not in ("os.mkdir", "os.truncate")) or not all(
                inside(path, folder) for path in named
            ):
                raise PermissionError(f"{event} outside")
        elif event.startswith(_DENIED):
            raise PermissionError(f"{event} is not allowed")

    sys.addaudithook(refuse)


def limit(seconds: float, memory_bytes: int, output_bytes: int) -> None:
    """Take the limits, none of which can be raised again."""
    processor = max(1, round(seconds))
    for kind, value in (
        (resource.RLIMIT_CPU, processor),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(kind, (value, value))


def reason(error: BaseException, texts: dict[str, str]) -> str:
    """Return what ended the run: the error, and the line on which it was raised.

    Args:
        error: as it was raised; what it says of itself is the model's code again.
        texts: of the files that ran.
    """
    frame, line = error.__traceback__, ""
    while frame is not None:
        lines = texts.get(frame.tb_frame.f_code.co_filename, "").splitlines()
        line = lines[frame.tb_lineno - 1].strip() if 0 < frame.tb_lineno <= len(lines) else line
        frame = frame.tb_next
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    return f"{said}, at `{line}`" if line and line not in said else said


def main(seconds: str, memory_bytes: str, output_bytes: str, asked: str, answered: str, told: str) -> None:
    """Run `code.py` and then `tests.py` of the working folder, in one namespace; answer with the word if both end."""
    folder = Path.cwd().resolve()
    texts = {name: (folder / name).read_text("utf-8") for name in ("code.py", "tests.py")}
    read, write, leave = os.read, os.write, os._exit
    limit(float(seconds), int(memory_bytes), int(output_bytes))
    guard(str(folder))
    sys.argv[1:] = []
    space: dict[str, object] = {"__name__": "answer"}
    try:
        for name, text in texts.items():
            exec(compile(text, name, "exec"), space)
    except BaseException as error:
        try:
            write(int(told), reason(error, texts).encode("utf-8", "replace")[:REASON_BYTES])
        finally:
            leave(1)
    write(int(answered), read(int(asked), 64))
    leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

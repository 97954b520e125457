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
    "os.chdir", "os.fchdir", "sys.settrace", "sys.setprofile", "gc.get_", "sqlite3.",
)  # fmt: skip
"""How the names of audit events begin that are refused whatever they are about."""
_ABSENT = (
    "_ctypes", "_curses", "_dbm", "_gdbm", "_multiprocessing", "_posixshmem", "_posixsubprocess", "_testcapi",
    "_testinternalcapi", "readline",
)  # fmt: skip
"""Modules that start processes, or open files and memory, without an audit event."""
_UNHEARD = ("chroot", "mkfifo", "mknod")
"""Functions of `os` likewise."""
REASON_BYTES = 1000
"""Less than a pipe holds, so that who tells it never waits."""
_CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.utime")


def guard(folder: str) -> None:
    """Let Python refuse, from now on, what code has no business with: the network, processes, files elsewhere."""

    def inside(path: object, *roots: str) -> bool:
        if isinstance(path, int):
            return True
        real = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        return any(real == root or real.startswith(root + os.sep) for root in roots)

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event == "import":
            # A library of its own making would be native code, which asks nobody.
            if isinstance(arguments[1], str) and not inside(arguments[1], *_READABLE):
                raise ImportError(f"{arguments[1]!r} is not loaded")
        elif event == "open":
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
            if (handles and event not in ("os.mkdir", "os.truncate", "os.utime")) or not all(
                inside(path, folder) for path in named
            ):
                raise PermissionError(f"{event} outside")
        elif event.startswith(_DENIED):
            raise PermissionError(f"{event} is not allowed")

    for name in _ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]
    for module in (os, sys.modules["posix"]):
        for name in _UNHEARD:
            if hasattr(module, name):
                delattr(module, name)
    sys.addaudithook(refuse)


def landlock_version() -> int:
    """Return which version of Landlock the kernel has, 0 for none: it keeps a process to files that it names itself.

    https://docs.kernel.org/userspace-api/landlock.html
    """
    import ctypes

    return max(0, ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, 1))


_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_NO_NEW_PRIVILEGES = 38
_READ, _TRUNCATE, _DEVICES = 0b1100, 1 << 14, 1 << 15
"""Reading files and folders; cutting files off (version 3); speaking to devices (version 5)."""
_FIRST_RIGHTS, _REFER = (1 << 13) - 1, 1 << 13
"""All rights of version 1, running programs among them; moving files between folders (version 2)."""


def confine(folder: str, version: int) -> None:
    """Let the kernel keep this process, and all that it starts, to its folder, to reading libraries, and to itself.

    Whatever gets past Python, native code too, is held by that. Programs cannot be started at all, nor can TCP be
    spoken or a signal sent to others, as far as the kernel's version has it.

    Args:
        folder: that may be written to.
        version: as `landlock_version` returns it; 0 does nothing.

    Raises:
        OSError: the kernel refuses.
    """
    if not version:
        return
    import ctypes
    import struct

    libc = ctypes.CDLL(None, use_errno=True)

    def call(*words: object) -> int:
        found = int(libc.syscall(*words))
        if found < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "landlock")
        return found

    newer = ((2, _REFER), (3, _TRUNCATE), (5, _DEVICES))
    rights = _FIRST_RIGHTS | sum(right for since, right in newer if version >= since)
    # Rights of files; binding and connecting (version 4); abstract sockets and signals (version 6).
    told = struct.pack("=QQQ", rights, 0b11, 0b11)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = call(_CREATE_RULESET, told, len(told), 0)
    allowed = {folder: rights & ~1, "/dev/null": 0b110, "/dev/urandom": 0b100, "/usr/share": _READ}
    allowed |= dict.fromkeys((*_READABLE, *_LIBRARIES), _READ)
    for path, granted in allowed.items():
        if not Path(path).exists():
            continue
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(_ADD_RULE, rules, 1, struct.pack("=Qi", granted if Path(path).is_dir() else granted & 0b110, handle), 0)
        os.close(handle)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    call(_RESTRICT_SELF, rules, 0)
    os.close(rules)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ctypes"]:
        del sys.modules[name]


_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
"""Where the system's loader finds what native modules need."""


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


def main(
    seconds: str, memory_bytes: str, output_bytes: str, landlock: str, asked: str, answered: str, told: str
) -> None:
    """Run `code.py` and then `tests.py` of the working folder, in one namespace; answer with the word if both end."""
    folder = Path.cwd().resolve()
    texts = {name: (folder / name).read_text("utf-8") for name in ("code.py", "tests.py")}
    read, write, leave = os.read, os.write, os._exit
    limit(float(seconds), int(memory_bytes), int(output_bytes))
    confine(str(folder), int(landlock))
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

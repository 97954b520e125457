"""The preloaded shim, built and reached from Python: which kinds of fault there are, and what each can hit."""

import ctypes
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
_TAKE_SPACE = {"open", "write", "truncate", "sync", "rename", "mkdir", "close"}
_ALL = {*_TAKE_SPACE, "unlink", "mode"}
KINDS = {
    "count": set(),
    "no space": _TAKE_SPACE,
    "io error": _ALL,
    "short write": {"write"},
    "disk full": _TAKE_SPACE,
    "kill": _ALL,
    "kill in a write": {"write"},
    "power loss": _ALL,
    "power loss, names kept": _ALL,
    "read only": _ALL,
}
"""A kind of fault to the operations that it can hit; in the order of the shim's enumeration.

`no space` and `io error` are of one operation alone; `disk full` and `read only` hold from then on. Each loss of power is the harshest
that POSIX allows: contents that were not synced are gone, and names of files that their folder was not synced for.
"""
DEADLY = {"kill", "kill in a write", "power loss", "power loss, names kept"}


@dataclass(frozen=True)
class Operation:
    """One change of the disk, as the shim saw it."""

    number: int
    name: str
    size: int
    """Bytes of a write, the new size of a truncation."""
    path: str
    """Below the watched folder; `.` for itself."""

    def can_be(self, kind: str) -> bool:
        """Return whether a kind of fault can hit it."""
        return self.name in KINDS[kind] and (kind != "short write" or self.size > 1)


def build(folder: Path) -> Path:
    """Return the shared library, made with the system's C compiler in a folder.

    Args:
        folder: that gets it.
    """
    library = folder / "faults.so"
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *options, "-o", str(library), str(SOURCE), "-ldl", "-lpthread"], check=True)
    return library


class Shim:
    """The shim that this process was started with."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        if not hasattr(library, "faults_arm"):
            raise RuntimeError("this process was started without the shim in LD_PRELOAD")
        self._arm, self._disarm = library.faults_arm, library.faults_disarm
        self._arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int]
        self._disarm.restype = ctypes.c_long
        self._log = -1
        self._prefix = ""

    def arm(self, folder: Path, kind: str, number: int = 0, log: Path | None = None) -> None:
        """Watch a folder from now on; operation `number`, from 1, fails.

        Args:
            folder: without symbolic links in its path.
            kind: one of KINDS.
            number: which operation.
            log: gets a line an operation.
        """
        # High, so that no file of the run gets its number; and not in the folder.
        self._log = -1
        if log is not None:
            with log.open("ab", buffering=0) as file:
                self._log = os.dup2(file.fileno(), 999, inheritable=False)
        self._prefix = f"{folder}/"
        self._arm(self._prefix.encode(), list(KINDS).index(kind), number, self._log)

    def disarm(self) -> int:
        """Watch nothing any more; return how many operations there were."""
        count = self._disarm()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
        return count


def read_log(log: Path, folder: Path) -> list[Operation]:
    """Return the operations of a log.

    Args:
        log: that `Shim.arm` was given.
        folder: that was watched.
    """
    rows = [line.split("\t", 3) for line in log.read_text(encoding="utf-8").splitlines()]
    return [Operation(int(number), name, int(size), os.path.relpath(path, folder)) for number, name, size, path in rows]

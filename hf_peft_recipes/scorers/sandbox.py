"""Code of a model, run apart: another process with limits, no network and no secrets, whose verdict is not its word.

What holds: a process group and, where the kernel lets a user have them, namespaces of its own (no network, and no
process outlives it), limits of `resource`, an empty environment, output that is cut; and a temporary folder outside of
which nothing is written, and nothing but libraries is read. That the kernel sees to where it has Landlock (Linux 5.13),
native code included, and no program can be started. Elsewhere Python's audit hooks alone do, which stop what goes
through Python: native code, or an answer that knows this file by heart, gets past them. It is no virtual machine either
way.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hf_peft_recipes.scorers.harness import landlock_version

_GRACE_SECONDS = 2.0
"""An interpreter needs some of its own to start, on a machine that is busy."""
_OUTPUT_BYTES = 1 << 20
_REASON_CHARACTERS = 240

_HARNESS = Path(__file__).with_name("harness.py")
_NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--")


@dataclass(frozen=True)
class Verdict:
    """Whether code passed its tests, and what ended it where it did not."""

    passed: bool
    reason: str = ""
    """One line that can be printed. It may be of the code's own making, so nothing is decided by it."""


def run_code(code: str, tests: str, seconds: float, memory_mib: int) -> Verdict:
    """Return whether the tests ran to their end after the code did, and what ended them otherwise.

    Args:
        code: Python, of the model.
        tests: Python, which raises where the code is wrong.
        seconds: of both together, by the clock and of the processor.
        memory_mib: address space, in MiB.
    """
    with tempfile.TemporaryDirectory(prefix="unit-tests-") as folder:
        (Path(folder) / "code.py").write_text(code, encoding="utf-8", errors="replace")
        (Path(folder) / "tests.py").write_text(tests, encoding="utf-8", errors="replace")
        asked, answered, told = os.pipe(), os.pipe(), os.pipe()
        # Read once the tests are through: whoever leaves before, whatever it printed, does not know it.
        word = secrets.token_hex(16).encode()
        os.write(asked[1], word)
        os.close(asked[1])
        handles = (asked[0], answered[1], told[1])
        limits = [str(value) for value in (seconds, memory_mib << 20, _OUTPUT_BYTES, landlock(), *handles)]
        started = time.monotonic()
        try:
            process = subprocess.Popen(
                [*namespaces(), sys.executable, "-I", "-B", str(_HARNESS), *limits],
                cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": folder, "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=handles, start_new_session=True,
            )  # fmt: skip
            late = Verdict(False, f"it ran for more than {seconds:g} s")
            try:
                process.wait(seconds + _GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                return late
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if _waiting(answered[0], len(word) + 1) == word:
                return Verdict(True)
            reason = _one_line(_waiting(told[0], 4 * _REASON_CHARACTERS))
            if reason or time.monotonic() - started < seconds:
                return Verdict(False, reason or "it ended before the tests were through")
            return late
        finally:
            for descriptor in (asked[0], *answered, *told):
                os.close(descriptor)


def _waiting(descriptor: int, most_bytes: int) -> bytes:
    """Return what stands in a pipe by now."""
    os.set_blocking(descriptor, False)
    with suppress(BlockingIOError):
        return os.read(descriptor, most_bytes)
    return b""


def _one_line(said: bytes) -> str:
    """Return bytes of any kind as one line: no control characters, which a terminal would obey."""
    text = "".join(character if character.isprintable() else " " for character in said.decode("utf-8", "replace"))
    line = " ".join(text.split())
    return line if len(line) <= _REASON_CHARACTERS else f"{line[:_REASON_CHARACTERS]}…"


@cache
def landlock() -> int:
    """Return which version of Landlock keeps the code to its files; 0 where the kernel has none."""
    try:
        return landlock_version()
    except (OSError, AttributeError):
        return 0


@cache
def namespaces() -> tuple[str, ...]:
    """Return the words that start a process without a network, whose children end with it; none where that is refused.

    A kernel may forbid namespaces to users, and other systems have none: the rest of the limits holds all the same.
    """
    try:
        finished = subprocess.run([*_NAMESPACES, "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return _NAMESPACES if finished.returncode == 0 else ()

"""A disk that is full, read-only or broken, told in one line with how the run goes on."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_peft_recipes.checkpoints.verdicts import newest_good
from hf_peft_recipes.errors import DiskError

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}


@contextmanager
def disk_told(folder: Path) -> Iterator[None]:
    """Let the block write into a run's folder.

    Args:
        folder: of the run.

    Raises:
        DiskError: the disk could not be written; what the folder holds is told.
    """
    try:
        yield
    except Exception as error:
        if (problem := disk_problem(error)) is None:
            raise
        raise DiskError(f"{str(folder)!r} cannot be written: {problem}; {_kept(folder)}") from error


def disk_problem(error: Exception) -> str | None:
    """Return what is wrong with the disk by the system's words, where that is what an error is about.

    Args:
        error: of Python, or of a library in Rust, which raises a class of its own and tells the system's number.
    """
    found = re.search(r"\(os error (\d+)\)", str(error))
    code = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return os.strerror(code) if code in _OF_THE_DISK else None


def _kept(folder: Path) -> str:
    try:
        good, _ = newest_good(folder)
    except OSError as error:
        return f"nor can it be read: {error.strerror}"
    if good is None:
        return "it holds no checkpoint yet"
    return f"its checkpoint of step {good.step} is whole, and --resume goes on from it once that is mended"

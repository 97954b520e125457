"""The garbage collector in a process of our own: what stays for good is not looked through again and again.

torch and the libraries around it make some 600,000 objects as they are imported, none of them garbage. A full
collection takes 0.2 to 0.4 s to find that out, and a short run makes fifteen: during imports, and where it gives memory
back. Only the command line asks for this, whose process is its own; a caller's process stays as it is.
"""

import gc

_usual: list[tuple[int, int, int]] = []


def rest() -> None:
    """Let the collector look for garbage rarely, until `resume`: objects are being made that stay."""
    if not _usual:
        _usual.append(gc.get_threshold())
        gc.set_threshold(200_000, 10, 10)


def resume() -> None:
    """Leave what there is out of collections from now on, and collect as usual again; nothing without `rest`."""
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual.pop())

"""One function on many things at once, in threads that nobody waits for at the end."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what the function returns for it, as they come.

    Whoever stops listening, or is interrupted, goes on at once: no thread takes up another item then, and none keeps
    the program from ending, as those of `concurrent.futures` would.

    Args:
        function: may wait, for a server or for a process.
        items: to call it with.
        threads: how many at once.

    Raises:
        Exception: as the function raises it.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, Result | None, Exception | None]] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((item, function(item), None))
            except Exception as error:
                done.put((item, None, error))

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in items:
            item, result, error = done.get()
            if error is not None:
                raise error
            yield item, result  # type: ignore[misc]
    finally:
        stopped.set()

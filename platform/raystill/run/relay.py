"""What work says while it goes on, as a generator: a Ray task or actor method can yield it to its caller."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Word = TypeVar("Word")


def relay(work: Callable[[Callable[[Word], None]], Word], name: str) -> Iterator[Word]:
    """Run `work` in a thread called `name`, and yield what it hands to its argument as it comes, then its
    result. Raises what it raises."""
    end: Future[Word] = Future()
    words: queue.SimpleQueue[Word | Future[Word]] = queue.SimpleQueue()

    def run() -> None:
        try:
            end.set_result(work(words.put))
        except BaseException as error:  # noqa: BLE001 (raised below, whatever it is)
            end.set_exception(error)
        words.put(end)

    threading.Thread(target=run, name=name, daemon=True).start()
    while not isinstance(word := words.get(), Future):
        yield word
    yield end.result()

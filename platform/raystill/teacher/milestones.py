"""When a worker reports on a shard: after the same numbers of finished rows in every attempt.

Ray hands the shards of a dead actor to its successor, and goes on with the records where those of the first
attempt ended. A second attempt that yields fewer can end between a block and its metadata, which Ray Data
takes for an error of the task ("Above ray.get should raise an exception") and stops: time must not decide
how many records there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

_MOST = 16


class Milestones:
    """At most 16 evenly spaced numbers of finished rows, the last of them the end of the shard.

    One thread advances, another waits.
    """

    def __init__(self, num_rows: int) -> None:
        count = min(_MOST, num_rows)
        self._before_end = [num_rows * number // count for number in range(1, count)]
        self._finished = 0
        self._has_ended = False
        self._changed = threading.Condition()

    def advance(self, rows: int) -> None:
        """Note that so many more rows are finished."""
        with self._changed:
            self._finished += rows
            self._changed.notify_all()

    def end(self, _: object = None) -> None:
        """Note that nothing more will be finished; also a future's callback."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def wait_each(self) -> Iterator[int]:
        """Yield the rows of each milestone when it is reached; stop at the end, however it came about."""
        for rows in self._before_end:
            if not self._wait_for(rows):
                break
            yield rows
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended)

    def _wait_for(self, rows: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._finished >= rows or self._has_ended)
            return self._finished >= rows

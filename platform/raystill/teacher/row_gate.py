"""Which rows of a worker are in flight together: as many as its engine holds, suspects by themselves."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Collection
from itertools import count

Waiting = tuple[str, "asyncio.Future[None]"]


class RowGate:
    """Admits rows to an engine. Belongs to one event loop.

    Rows come in the order of their `rank`, equal ranks in the order of their arrival. While `suspects` wait,
    nothing else is admitted; they run in groups of `group`, and `on_cleared` is called once all have left.
    """

    def __init__(
        self, limit: int, suspects: Collection[str], group: int, on_cleared: Callable[[], None]
    ) -> None:
        self._limit = limit
        self._suspects = set(suspects)
        self._group = group
        self._on_cleared = on_cleared
        self._in_flight: set[str] = set()
        self._waiting: list[tuple[tuple[int, int], int, Waiting]] = []
        self._waiting_suspects: deque[Waiting] = deque()
        self._arrivals = count()
        self._last_moved = time.monotonic()

    @property
    def stalled_seconds(self) -> float:
        """How long rows have been in flight without one of them leaving; 0 where none is in flight."""
        return time.monotonic() - self._last_moved if self._in_flight else 0.0

    async def enter(self, key: str, rank: tuple[int, int]) -> None:
        """Wait until the row may run. Call `leave` afterwards, whatever became of it."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if key in self._suspects:
            self._waiting_suspects.append((key, admitted))
        else:
            heapq.heappush(self._waiting, (rank, next(self._arrivals), (key, admitted)))
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self.leave(key)
            raise

    def leave(self, key: str) -> None:
        """The row is in flight no longer."""
        self._in_flight.discard(key)
        self._last_moved = time.monotonic()
        if key in self._suspects:
            self._suspects.discard(key)
            if not self._suspects:
                self._on_cleared()
        self._admit()

    def close(self) -> None:
        """Let no further row in: those that wait do so until their shard is given up."""
        self._limit = 0
        self._group = 0

    def _admit(self) -> None:
        if self._waiting_suspects or self._in_flight & self._suspects:
            if not self._in_flight:
                while self._waiting_suspects and len(self._in_flight) < self._group:
                    self._start(self._waiting_suspects.popleft())
            return
        while self._waiting and len(self._in_flight) < self._limit:
            self._start(heapq.heappop(self._waiting)[2])

    def _start(self, waiting: Waiting) -> None:
        key, admitted = waiting
        if admitted.done():  # its shard was given up
            return
        if not self._in_flight:
            self._last_moved = time.monotonic()
        self._in_flight.add(key)
        admitted.set_result(None)

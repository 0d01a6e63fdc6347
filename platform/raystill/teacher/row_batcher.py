"""Rows to batches: callers await single rows, a thread runs whole batches one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

# How long a batch that isn't full waits for more rows.
_GATHER_SECONDS = 0.02


class RowBatcher(Generic[Request, Answer]):
    """Runs `run_batch` on up to `batch_size` rows at a time. Belongs to one event loop."""

    def __init__(self, run_batch: Callable[[list[Request]], list[Answer]], batch_size: int) -> None:
        self._run_batch = run_batch
        self._batch_size = batch_size
        self._waiting: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._runner: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher-batch")

    async def submit(self, request: Request) -> Answer:
        """The answer to one row. Raises whatever its batch raised."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await future

    def close(self) -> None:
        """Start no more batches; the one that runs ends first."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if len(self._waiting) < self._batch_size:
                await asyncio.sleep(_GATHER_SECONDS)
            batch = self._waiting[: self._batch_size]
            del self._waiting[: self._batch_size]
            running = loop.run_in_executor(self._thread, self._run_batch, [request for request, _ in batch])
            await asyncio.wait([running])
            error = running.exception()
            for index, (_, future) in enumerate(batch):
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(running.result()[index])

"""The actor that holds one engine. Ray Data sends it shards; rows of several shards are in flight at once.

Its engine runs in an event loop of its own. A shard's task submits the shard's rows to that loop, where one
gate bounds the rows in flight, so the engine never waits for the slowest row of a batch. Parts are committed
here, in one thread, before a task ends: what a task has reported can't be lost.

An engine that dies, or that finishes no row for `teacher.vllm.stall_timeout_s`, takes this process with it.
Ray starts the actor again with the shards it had, and notes in the scratch directory tell the new process
which rows were in flight; see `raystill.teacher.death_notes`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from raystill.store.reader import committed_keys
from raystill.store.records import Reject
from raystill.store.writer import PartWriter
from raystill.teacher.build_engine import EngineBlueprint, build_engine
from raystill.teacher.death_notes import DeathNotes
from raystill.teacher.drain import Drain
from raystill.teacher.errors import EngineDiedError, EngineRowError
from raystill.teacher.milestones import Milestones
from raystill.teacher.row_gate import RowGate
from raystill.teacher.row_work import Answer, Row, WorkOrder, drain_directory, drop_committed, reject_of
from raystill.teacher.shards import Shard, shards_from_table

PROGRESS_SCHEMA = pa.schema(
    [pa.field("done", pa.int64()), pa.field("rejected", pa.int64()), pa.field("tokens", pa.int64())]
)
# Finished rows wait at most so long for the rest of their shard: a crash loses no more paid work than this.
_COMMIT_SECONDS = 60.0
_DoneRows = asyncio.Queue[asyncio.Task[Answer | Reject]]
_ENGINE_DIED_EXIT_CODE = 70
_ENGINE_DIED = "engine_died"


@dataclass
class _Tally:
    """A shard's progress; written by the loop, read by the task's thread."""

    milestones: Milestones
    done: int = 0
    rejected: int = 0
    tokens: int = 0
    _reported: tuple[int, int, int] = field(default=(0, 0, 0))

    def take_news(self) -> pa.Table:
        """What is new since the last call, as one record."""
        now = (self.done, self.rejected, self.tokens)
        news = [after - before for after, before in zip(now, self._reported, strict=True)]
        self._reported = now
        return pa.table([[value] for value in news], schema=PROGRESS_SCHEMA)


@dataclass
class _OpenShard:
    """A shard of which rows are in flight: its tasks, those that are done, and outcomes without a commit."""

    partition: int
    done: _DoneRows = field(default_factory=asyncio.Queue)
    finished: list[Answer | Reject] = field(default_factory=list)

    def take_finished(self) -> list[Answer | Reject]:
        """The outcomes that are to be committed now; nobody else will."""
        finished, self.finished = self.finished, []
        return finished


class ShardWorker:
    """A Ray Data UDF: blocks of shard descriptors in, progress records out, parts on the disk."""

    def __init__(self, blueprint: EngineBlueprint, order: WorkOrder) -> None:
        """Start an event loop; the engine starts with the first shard."""
        self._blueprint = blueprint
        self._order = order
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="teacher-loop", daemon=True).start()
        # One thread: parts are written one after the other, by the thread that holds the writer's lock.
        self._commits = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher-commit")
        self._writer = self._commits.submit(PartWriter, order.store).result()
        # A restarted actor keeps its id.
        self._name = ray.get_runtime_context().get_actor_id()
        self._is_restarted = ray.get_runtime_context().was_current_actor_reconstructed
        # Not started here: what an actor's constructor raises reaches the driver as text only.
        self._starting: Future[None] | None = None
        self._is_dying = False
        self._open: list[_OpenShard] = []
        self._start_lock = threading.Lock()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Do the shards of a block; yields what is new at the start, at each milestone and at the end.

        Raises what `build_engine` and a commit raise. Where the engine has died, so does this process: Ray
        starts both again.
        """
        with self._start_lock:
            if self._starting is None:
                self._starting = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        self._starting.result()
        for shard in shards_from_table(block):
            tally = _Tally(Milestones(shard.num_rows))
            yield tally.take_news()
            running = asyncio.run_coroutine_threadsafe(self._run_shard(shard, tally), self._loop)
            running.add_done_callback(tally.milestones.end)
            for _ in tally.milestones.wait_each():
                yield tally.take_news()
            self._finish(running)
            yield tally.take_news()

    def _finish(self, running: Future[None]) -> None:
        try:
            running.result()
        except EngineDiedError:
            self._engine.shutdown()
            os._exit(_ENGINE_DIED_EXIT_CODE)

    async def _start(self) -> None:
        vllm = self._blueprint.config.teacher.vllm
        self._notes = DeathNotes(Path(self._order.notes), self._name, vllm.max_restarts)
        self._notes.require_hope(self._blueprint.facts.engine)
        self._engine = build_engine(self._blueprint)
        atexit.register(self._engine.shutdown)
        blame = self._notes.blame
        self._gate = RowGate(
            self._engine.rows_in_flight, blame.suspects, blame.group, self._notes.clear_suspects
        )
        self._order.work.prepare()
        Drain(drain_directory(self._order)).join(self._name, self._drain)
        # A thread of its own: it must see a stall that holds up the loop as well.
        threading.Thread(
            target=self._watch, args=(vllm.stall_timeout_s,), name="teacher-watch", daemon=True
        ).start()

    def _watch(self, stall_timeout_s: float) -> None:
        """End this process when the engine hangs; the guard of an engine's processes ends those.

        Time in which this process did not get to run (it was stopped, the machine slept or is overloaded) is
        no fault of the engine's: a look counts for as long as it was meant to take.
        """
        pause, stalled = min(1.0, stall_timeout_s / 4), 0.0
        while stalled < stall_timeout_s:
            time.sleep(pause)
            stalled = min(self._gate.stalled_seconds, stalled + pause)
        os._exit(_ENGINE_DIED_EXIT_CODE)

    async def _run_shard(self, shard: Shard, tally: _Tally) -> None:
        rows = await self._in_commit_thread(self._load, shard)
        tally.milestones.advance(shard.num_rows - len(rows))
        own = _OpenShard(shard.partition)
        tasks = [asyncio.create_task(self._run_row(row, self._rank(shard, row))) for row in rows]
        for task in tasks:
            task.add_done_callback(own.done.put_nowait)
        committed_at = time.monotonic()
        left = len(tasks)
        self._open.append(own)
        try:
            while left:
                for task in await _next_done(own.done):
                    outcome = task.result()
                    left -= 1
                    own.finished.append(outcome)
                    _count(outcome, tally)
                waited = time.monotonic() - committed_at
                if not left or (waited > _COMMIT_SECONDS and _has_answer(own.finished)):
                    await self._in_commit_thread(self._commit, own.partition, own.take_finished())
                    committed_at = time.monotonic()
        finally:
            self._open.remove(own)
            for task in tasks:
                task.cancel()

    def _drain(self) -> None:
        """Commit every row that is done, whatever else its shard waits for. For a thread of its own."""
        asyncio.run_coroutine_threadsafe(self._commit_open(), self._loop).result()

    async def _commit_open(self) -> None:
        self._gate.close()
        for shard in list(self._open):
            finished = shard.take_finished()
            if _has_answer(finished):
                await self._in_commit_thread(self._commit, shard.partition, finished)

    def _rank(self, shard: Shard, row: Row) -> tuple[int, int]:
        """Rows of the job's tail come last, longest first; see `raystill.teacher.row_order`."""
        return (1, -self._order.work.size(row)) if shard.in_tail else (0, 0)

    async def _run_row(self, row: Row, rank: tuple[int, int]) -> Answer | Reject:
        key, work = row["key"], self._order.work
        deaths = self._notes.blame.convicted.get(key)
        if deaths is not None:
            reason = f"the engine died {deaths} times with this row in flight, the last time with it alone"
            return reject_of(row, work.commits, _ENGINE_DIED, reason, attempts=deaths)
        await self._gate.enter(key, rank)
        self._notes.started(key)
        try:
            outcome: Answer | Reject = await work.run(self._engine, row)
        except EngineRowError as error:
            outcome = reject_of(row, work.commits, error.code, error.reason)
        except EngineDiedError:
            self._is_dying = True
            raise
        except BaseException:
            self._leave(key)
            raise
        self._leave(key)
        return outcome

    def _leave(self, key: str) -> None:
        if self._is_dying:  # rows that are given up now were in flight, and the notes must go on saying so
            return
        self._notes.finished(key)
        self._gate.leave(key)

    def _load(self, shard: Shard) -> list[Row]:
        rows = shard.read()
        if not self._is_restarted:
            return rows
        # The process before this one may have committed part of the shard.
        keys = committed_keys(self._order.store, shard.partition, self._order.work.commits)
        return drop_committed(rows, keys)

    def _commit(self, partition: int, finished: list[Answer | Reject]) -> None:
        answers = [outcome for outcome in finished if isinstance(outcome, Answer)]
        rejects = [outcome for outcome in finished if isinstance(outcome, Reject)]
        if answers:
            self._order.work.commit(self._writer, partition, answers)
        if rejects:
            self._writer.commit_rejects(partition, rejects)

    async def _in_commit_thread(self, function: Any, *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._commits, function, *arguments)


async def _next_done(done: _DoneRows) -> list[asyncio.Task[Answer | Reject]]:
    """Rows that are done: at least one, or none after a while. A queue, because `asyncio.wait` would look at
    every task of the shard again whenever one of them is done."""
    try:
        found = [await asyncio.wait_for(done.get(), _COMMIT_SECONDS)]
    except TimeoutError:
        return []
    while not done.empty():
        found.append(done.get_nowait())
    return found


def _has_answer(finished: list[Answer | Reject]) -> bool:
    """A convicted row waits for a sign that the engine works at all."""
    return any(isinstance(outcome, Answer) for outcome in finished)


def _count(outcome: Answer | Reject, tally: _Tally) -> None:
    if isinstance(outcome, Answer):
        tally.done += 1
        tally.tokens += outcome.num_tokens
    else:
        tally.rejected += 1
    tally.milestones.advance(1)

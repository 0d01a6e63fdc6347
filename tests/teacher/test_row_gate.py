"""Never more rows in flight than the engine holds, suspects by themselves, the tail longest first."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from raystill.teacher.row_gate import RowGate


class Rows:
    """Rows that stay in flight until they are told to leave."""

    def __init__(self, gate: RowGate) -> None:
        self.gate = gate
        self.started: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def send(self, key: str, rank: tuple[int, int] = (0, 0)) -> None:
        self.ends[key] = asyncio.Event()
        self.tasks.append(asyncio.create_task(self._run(key, rank)))

    async def _run(self, key: str, rank: tuple[int, int]) -> None:
        await self.gate.enter(key, rank)
        self.started.append(key)
        await self.ends[key].wait()
        self.gate.leave(key)

    async def end(self, *keys: str) -> None:
        for key in keys:
            self.ends[key].set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, timeout=60))


def test_rows_come_in_order_and_no_more_than_fit() -> None:
    async def check() -> None:
        rows = Rows(RowGate(2, (), 0, lambda: None))
        for key in "abcd":
            rows.send(key)
        await settle()
        assert rows.started == ["a", "b"]
        await rows.end("b")
        assert rows.started == ["a", "b", "c"]
        await rows.end("a", "c", "d")
        assert rows.started == ["a", "b", "c", "d"]

    run(check())


def test_the_tail_waits_for_other_rows_and_runs_longest_first() -> None:
    async def check() -> None:
        rows = Rows(RowGate(1, (), 0, lambda: None))
        rows.send("first")
        await settle()
        for key, length in (("short", 10), ("long", 90), ("middle", 50)):
            rows.send(key, (1, -length))
        rows.send("normal")
        await settle()
        await rows.end("first", "normal", "long", "middle", "short")
        assert rows.started == ["first", "normal", "long", "middle", "short"]

    run(check())


def test_suspects_run_in_groups_with_nothing_else() -> None:
    cleared: list[bool] = []

    async def check() -> None:
        rows = Rows(RowGate(8, {"s1", "s2", "s3"}, 2, lambda: cleared.append(True)))
        for key in ("n1", "s1", "n2", "s2", "s3"):
            rows.send(key)
        await settle()
        assert rows.started == ["n1"]  # it came before any suspect did
        await rows.end("n1")
        assert rows.started == ["n1", "s1", "s2"]
        await rows.end("s1")
        assert rows.started == ["n1", "s1", "s2"]
        await rows.end("s2")
        assert rows.started == ["n1", "s1", "s2", "s3"]
        assert not cleared
        await rows.end("s3")
        assert cleared == [True]
        assert rows.started[-1] == "n2"

    run(check())


def test_a_row_that_is_given_up_frees_its_place() -> None:
    async def check() -> None:
        gate = RowGate(1, (), 0, lambda: None)
        rows = Rows(gate)
        for key in "abc":
            rows.send(key)
        await settle()
        rows.tasks[1].cancel()
        await settle()
        await rows.end("a")
        assert rows.started == ["a", "c"]

    run(check())


def test_a_stall_is_seen_only_while_rows_are_in_flight() -> None:
    async def check() -> None:
        gate = RowGate(1, (), 0, lambda: None)
        rows = Rows(gate)
        assert gate.stalled_seconds == 0.0
        rows.send("a")
        await settle()
        await asyncio.sleep(0.05)
        assert gate.stalled_seconds >= 0.05
        await rows.end("a")
        assert gate.stalled_seconds == 0.0

    run(check())

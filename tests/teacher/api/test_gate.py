"""The gate: who passes when, what it reserves, and how it closes. A real event loop in virtual time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any

import pytest
from asking import PRICES, Heard, request_of
from hypothesis import given, settings
from hypothesis import strategies as st

from raystill.errors import RemoteError
from raystill.teacher.api.address import Address
from raystill.teacher.api.client import ApiClient
from raystill.teacher.api.engine import EngineSettings, OpenAIEngine
from raystill.teacher.api.gate import Ask, GateSettings, Permit, RequestGate, Settlement
from raystill.teacher.api.wire import BodyShape
from raystill.teacher.engine import Generation
from raystill.testing.fault_bodies import error_body


class VirtualTime(asyncio.SelectorEventLoop):
    """Waits by moving its clock: no machine is too busy for it."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_NoWait(self))

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self.now


class _NoWait(selectors.SelectSelector):
    def __init__(self, loop: VirtualTime) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self._loop.now += max(timeout or 0.0, 1e-7)  # a turn of the loop takes time, too
        return super().select(0)


def run_virtually(body: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(body)


def gate_of(**changes: Any) -> RequestGate:
    return RequestGate(settings_of(**changes), clock=asyncio.get_running_loop().time)


def settings_of(**changes: Any) -> GateSettings:
    values = {
        "max_in_flight": 4, "requests_per_minute": None, "tokens_per_minute": None,
        "max_cost_usd": None, "max_new_tokens": 10,
    }  # fmt: skip
    return GateSettings(**{**values, **changes})


async def ask_many(gate: RequestGate, count: int, seconds: float, **settlement: Any) -> float:
    started = asyncio.get_running_loop().time()

    async def one() -> None:
        permit = await gate.acquire(Ask(5.0, 0.0))
        await asyncio.sleep(seconds)
        await gate.release(permit, Settlement(**{"tokens": 10, "completion_tokens": 5, **settlement}))

    await asyncio.gather(*(one() for _ in range(count)))
    return asyncio.get_running_loop().time() - started


def test_no_more_than_the_limit_are_in_flight_and_no_time_is_lost() -> None:
    async def run() -> float:
        return await ask_many(gate_of(max_in_flight=20), 200, 0.05)

    assert run_virtually(run()) == pytest.approx(10 * 0.05, rel=1e-3)


def test_the_request_rate_is_used_to_95_percent_without_polling() -> None:
    async def run() -> float:
        return await ask_many(gate_of(requests_per_minute=6000, max_in_flight=50), 300, 0.001)

    took = run_virtually(run())
    ideal = (300 - 100) / 100.0  # a burst of one second passes first
    assert ideal <= took + 1e-6
    assert took < ideal / 0.95


def test_the_token_rate_counts_what_was_used_rather_than_what_was_reserved() -> None:
    async def run() -> float:
        gate = gate_of(tokens_per_minute=60_000, max_in_flight=20, max_new_tokens=500)
        return await ask_many(gate, 250, 0.01)

    # 250 requests of 10 tokens at 1,000 a second, the first second at once; reservations alone would take
    # 250 * 505 / 1,000 = 126 s.
    assert run_virtually(run()) < 8.0


def test_retries_pass_before_fresh_requests() -> None:
    async def run() -> list[str]:
        gate = gate_of(max_in_flight=1)
        held = await gate.acquire(Ask(1.0, 0.0))
        order: list[str] = []

        async def one(name: str, is_retry: bool) -> None:
            permit = await gate.acquire(Ask(1.0, 0.0, is_retry))
            order.append(name)
            await gate.release(permit, Settlement(tokens=1))

        tasks = [asyncio.create_task(one("fresh", False)), asyncio.create_task(one("again", True))]
        await asyncio.sleep(0)
        await gate.release(held, Settlement(tokens=1))
        await asyncio.gather(*tasks)
        return order

    assert run_virtually(run()) == ["again", "fresh"]


def test_who_is_cancelled_while_waiting_holds_nothing() -> None:
    async def run() -> int:
        gate = gate_of(max_in_flight=1)
        held = await gate.acquire(Ask(1.0, 0.0))
        waiting = asyncio.create_task(gate.acquire(Ask(1.0, 0.0)))
        await asyncio.sleep(0)
        waiting.cancel()
        await gate.release(held, Settlement(tokens=0))
        permit = await asyncio.wait_for(gate.acquire(Ask(1.0, 0.0)), 1.0)
        await gate.release(permit, Settlement(tokens=0))
        return (await gate.stats()).in_flight

    assert run_virtually(run()) == 0


def test_a_dead_clients_permit_is_taken_back_and_its_money_stays_reserved() -> None:
    async def run() -> float:
        gate = gate_of(max_in_flight=1, lease_seconds=0.1)
        lost = await gate.acquire(Ask(1.0, 0.5))
        permit = await asyncio.wait_for(gate.acquire(Ask(1.0, 0.1)), 5.0)
        await gate.release(lost, Settlement(tokens=1, spent_usd=9.0))  # too late: settled already
        await gate.release(permit, Settlement(tokens=1, spent_usd=0.1))
        return (await gate.stats()).at_risk_usd

    assert run_virtually(run()) == 0.5


@settings(max_examples=40, deadline=None)
@given(
    cap=st.floats(0.01, 2.0),
    costs=st.lists(st.tuples(st.floats(0.001, 0.5), st.floats(0.0, 1.0)), min_size=1, max_size=30),
)
def test_spent_and_reserved_never_exceed_the_cap(cap: float, costs: list[tuple[float, float]]) -> None:
    """F12."""

    async def run() -> float:
        gate = gate_of(max_cost_usd=cap)
        spent = 0.0

        async def one(worst: float, share: float) -> None:
            nonlocal spent
            permit: Permit = await gate.acquire(Ask(1.0, worst))
            await asyncio.sleep(0)
            spent += worst * share
            assert spent <= cap * (1 + 1e-9)
            await gate.release(permit, Settlement(tokens=1, spent_usd=worst * share))

        results = await asyncio.gather(*(one(*cost) for cost in costs), return_exceptions=True)
        assert all(result is None or isinstance(result, RemoteError) for result in results)
        return spent

    assert run_virtually(run()) <= cap * (1 + 1e-9)


def test_a_used_up_budget_says_what_was_spent_and_how_to_go_on() -> None:
    """F12."""

    async def run() -> None:
        gate = gate_of(max_cost_usd=1.0, spent_usd=0.9)
        await gate.acquire(Ask(1.0, 0.2))

    with pytest.raises(RemoteError, match=r"\$0.9000 of \$1.0000 spent") as caught:
        run_virtually(run())
    assert caught.value.exit_code == 5
    assert "raise teacher.closed.budget.max_cost_usd" in str(caught.value)


ANSWER = (
    b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],'
    b' "usage": {"prompt_tokens": 5, "completion_tokens": 1}}'
)


class BusyEndpoint(ApiClient):
    """Answers after a tenth of a second, but for a burst of 429."""

    burst = range(500, 520)
    retry_after: str | None = None

    async def _post(self, key: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        now = asyncio.get_running_loop().time
        self.asked = [*getattr(self, "asked", []), (key, now())]
        throttled = len(self.asked) in self.burst
        await asyncio.sleep(0.1)
        if not throttled:
            return 200, {}, ANSWER
        self.throttled = {**getattr(self, "throttled", {}), key: now()}
        return 429, {} if self.retry_after is None else {"Retry-After": self.retry_after}, error_body("429")


@pytest.mark.parametrize("retry_after", [None, "0.8"])
@pytest.mark.parametrize("rows", [2_000, 12_000])
def test_a_burst_of_429_costs_what_the_endpoint_asks_for_and_hardly_more(
    rows: int, retry_after: str | None
) -> None:
    """F5: with and without Retry-After; no row is lost, and the time is at most 1.1 times the ideal."""
    in_flight = 20

    async def run() -> tuple[BusyEndpoint, list[Any], Heard, float]:
        heard, loop = Heard(), asyncio.get_running_loop()
        settings = EngineSettings(BodyShape("m"), PRICES, "here", in_flight, 6, "keep")
        address = Address("http://127.0.0.1:9/v1", "localhost/v1", True)
        async with BusyEndpoint(address, None, timeout_s=5.0, connections=1, checks_ids=False) as client:
            client.retry_after = retry_after
            engine = OpenAIEngine(settings, client, gate_of(max_in_flight=in_flight), observer=heard)
            slots = asyncio.Semaphore(engine.rows_in_flight)

            async def one(index: int) -> Generation:
                async with slots:
                    return await engine.generate(request_of(index))

            started = loop.time()
            outcomes = await asyncio.gather(*map(one, range(rows)), return_exceptions=True)
            return client, outcomes, heard, loop.time() - started

    client, outcomes, heard, took = run_virtually(run())
    assert all(isinstance(outcome, Generation) for outcome in outcomes)
    assert (heard.requests, heard.retries) == (rows + 20, 20)
    for key, since in client.throttled.items():
        again = [at for asked, at in client.asked if asked == key][1]
        assert again >= since + float(retry_after or 0.0)
    ideal = (rows + 20) / in_flight * 0.1 + float(retry_after or 0.0)
    assert took <= 1.1 * ideal

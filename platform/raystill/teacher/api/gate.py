"""The gate that every request passes: rates, concurrency and budget of a run, shared by all its workers.

In-process where one worker sends requests, an actor where several do. Waiting requests are woken when they
are due, never by polling; those that were sent before come first.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from raystill.errors import RaystillError
from raystill.teacher.api.budget import Budget, budget_error
from raystill.teacher.api.limits import AdaptiveConcurrency, MeanTokens, TokenBucket


@dataclass(frozen=True)
class GateSettings:
    """Limits of a run. `spent_usd` and `at_risk_usd` are the store's, from before this run.

    `lease_seconds`: a permit that is not returned by then belonged to a process that has died.
    """

    max_in_flight: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_cost_usd: float | None
    max_new_tokens: int
    spent_usd: float = 0.0
    at_risk_usd: float = 0.0
    lease_seconds: float | None = None


@dataclass(frozen=True)
class Ask:
    """A request that wants to be sent: expected prompt tokens, and the most that it can cost."""

    prompt_tokens: float
    worst_usd: float
    is_retry: bool = False


@dataclass(frozen=True)
class Permit:
    """Leave to send one request, given in an `epoch` of the concurrency; `release` must follow."""

    number: int
    epoch: int
    reserved_tokens: float
    reserved_usd: float


@dataclass(frozen=True)
class Settlement:
    """How a request ended. `tokens` None: nothing is known, the reservation stands.

    `throttled_seconds` is set where the endpoint said that it was asked too often. `stop` closes the gate,
    before anyone takes the place that becomes free.
    """

    tokens: int | None = None
    completion_tokens: int | None = None
    spent_usd: float = 0.0
    at_risk_usd: float = 0.0
    throttled_seconds: float | None = None
    stop: RaystillError | None = None


@dataclass(frozen=True)
class GateStats:
    """What a run's requests came to so far; `spent_usd` and `at_risk_usd` over the store's life."""

    requests: int
    retries: int
    throttled: int
    in_flight: int
    concurrency: int
    spent_usd: float
    at_risk_usd: float


class Gate(Protocol):
    """What an engine needs of a gate, in this process or another."""

    async def acquire(self, ask: Ask) -> Permit:
        """Wait for leave to send. Raises the error that the gate was closed with."""
        ...

    async def release(self, permit: Permit, settlement: Settlement) -> None:
        """The request has ended."""
        ...

    async def close(self, error: RaystillError) -> None:
        """Let nobody pass any more: everyone who waits or comes later gets `error`. The first one counts."""
        ...

    async def stats(self) -> GateStats:
        """Counters."""
        ...


class RequestGate:
    """The gate itself. Belongs to one event loop; `clock` is for tests."""

    def __init__(self, settings: GateSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        rpm, tpm = settings.requests_per_minute, settings.tokens_per_minute
        self._requests = TokenBucket(rpm) if rpm else None
        self._tokens = TokenBucket(tpm) if tpm else None
        self._concurrency = AdaptiveConcurrency(settings.max_in_flight)
        self._completion = MeanTokens(float(settings.max_new_tokens))
        self._budget = Budget(settings.max_cost_usd, settings.spent_usd, settings.at_risk_usd)
        self._fresh: deque[tuple[Ask, asyncio.Future[Permit]]] = deque()
        self._retries: deque[tuple[Ask, asyncio.Future[Permit]]] = deque()
        self._leases: dict[int, tuple[Permit, float]] = {}
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._error: RaystillError | None = None
        self._sent = self._resent = self._throttled = 0

    async def acquire(self, ask: Ask) -> Permit:
        """See `Gate`."""
        if self._error is not None:
            raise self._error
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        (self._retries if ask.is_retry else self._fresh).append((ask, future))
        self._pump()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                await self.release(future.result(), Settlement(tokens=0))
            raise

    async def release(self, permit: Permit, settlement: Settlement) -> None:
        """See `Gate`. A permit whose lease has run out is settled already."""
        if self._leases.pop(permit.number, None) is None:
            return
        if settlement.stop is not None:
            self._close(settlement.stop)
        now = self._clock()
        if settlement.throttled_seconds is not None:
            self._throttled += 1
            self._concurrency.on_throttle(permit.epoch, settlement.throttled_seconds, now)
        else:
            self._concurrency.on_answer(permit.epoch)
        if settlement.completion_tokens is not None:
            self._completion.add(settlement.completion_tokens)
        if self._tokens is not None and settlement.tokens is not None:
            self._tokens.take(settlement.tokens - permit.reserved_tokens, now)
        self._budget.settle(permit.reserved_usd, settlement.spent_usd, settlement.at_risk_usd)
        self._pump()

    async def close(self, error: RaystillError) -> None:
        """See `Gate`."""
        self._close(error)

    async def stats(self) -> GateStats:
        """See `Gate`."""
        return GateStats(
            requests=self._sent,
            retries=self._resent,
            throttled=self._throttled,
            in_flight=len(self._leases),
            concurrency=self._concurrency.limit,
            spent_usd=self._budget.spent_usd,
            at_risk_usd=self._budget.at_risk_usd,
        )

    def _pump(self) -> None:
        """Let everyone pass whose turn it is, and set the timer for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (queue := self._retries or self._fresh) and self._error is None:
            ask, future = queue[0]
            if future.done():
                queue.popleft()
                continue
            now = self._clock()
            if len(self._leases) >= self._concurrency.limit or not self._affords(ask):
                self._expire(now)
                return
            wait = self._seconds_until(ask, now)
            if wait > 0.0:
                self._timer = asyncio.get_running_loop().call_later(wait, self._pump)
                return
            queue.popleft()
            future.set_result(self._admit(ask, now))

    def _affords(self, ask: Ask) -> bool:
        if self._budget.allows(ask.worst_usd):
            return True
        if not self._leases:  # nothing is in flight, so nothing will give back what is reserved
            self._close(budget_error(self._budget, ask.worst_usd))
        return False

    def _seconds_until(self, ask: Ask, now: float) -> float:
        wait = self._concurrency.seconds_until_open(now)
        if self._requests is not None:
            wait = max(wait, self._requests.seconds_until(1.0, now))
        if self._tokens is not None:
            wait = max(wait, self._tokens.seconds_until(ask.prompt_tokens + self._completion.value, now))
        return wait

    def _admit(self, ask: Ask, now: float) -> Permit:
        tokens = ask.prompt_tokens + self._completion.value
        if self._requests is not None:
            self._requests.take(1.0, now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)
        self._budget.reserve(ask.worst_usd)
        self._sent += 1
        self._resent += ask.is_retry
        permit = Permit(next(self._numbers), self._concurrency.epoch, tokens, ask.worst_usd)
        self._leases[permit.number] = (permit, now)
        return permit

    def _expire(self, now: float) -> None:
        """Take back permits of dead processes; their requests may be billed."""
        lease = self._settings.lease_seconds
        if lease is None or self._error is not None or not self._leases:
            return
        overdue = [permit for permit, since in self._leases.values() if now - since >= lease]
        for permit in overdue:
            del self._leases[permit.number]
            self._budget.settle(permit.reserved_usd, 0.0, permit.reserved_usd)
        oldest = min((since for _, since in self._leases.values()), default=now - lease)
        delay = max(0.0, oldest + lease - now)
        self._timer = asyncio.get_running_loop().call_later(delay, self._pump)

    def _close(self, error: RaystillError) -> None:
        if self._error is None:
            self._error = error
        for queue in (self._retries, self._fresh):
            while queue:
                _, future = queue.popleft()
                if not future.done():
                    future.set_exception(self._error)


class RemoteGate:
    """A gate in an actor (`GateActor`), as its clients see it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def acquire(self, ask: Ask) -> Permit:
        """See `Gate`."""
        outcome: Permit | RaystillError = await self._actor.acquire.remote(ask)
        if isinstance(outcome, RaystillError):
            raise outcome
        return outcome

    async def release(self, permit: Permit, settlement: Settlement) -> None:
        """See `Gate`."""
        await self._actor.release.remote(permit, settlement)

    async def close(self, error: RaystillError) -> None:
        """See `Gate`."""
        await self._actor.close.remote(error)

    async def stats(self) -> GateStats:
        """See `Gate`."""
        stats: GateStats = await self._actor.stats.remote()
        return stats


class GateActor:
    """Wraps a gate for Ray. Errors travel as values: Ray would wrap what is raised."""

    def __init__(self, settings: GateSettings) -> None:
        self._gate = RequestGate(settings)

    async def acquire(self, ask: Ask) -> Permit | RaystillError:
        """A permit, or the error that the gate was closed with."""
        try:
            return await self._gate.acquire(ask)
        except RaystillError as error:
            return error

    async def release(self, permit: Permit, settlement: Settlement) -> None:
        """See `Gate`."""
        await self._gate.release(permit, settlement)

    async def close(self, error: RaystillError) -> None:
        """See `Gate`."""
        await self._gate.close(error)

    async def stats(self) -> GateStats:
        """See `Gate`."""
        return await self._gate.stats()

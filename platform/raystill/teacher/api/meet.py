"""The first requests of a run: is the endpoint there, and what can it do? They are billed, so they count."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raystill.errors import RemoteError
from raystill.store.store import TeacherStore
from raystill.teacher.api.address import read_key
from raystill.teacher.api.budget import Budget, Prices, budget_error
from raystill.teacher.api.client import Answered, ApiClient
from raystill.teacher.api.identify import KnownEndpoint
from raystill.teacher.api.ledger import RiskEntry, RiskLedger, Spending, load_spending
from raystill.teacher.api.outcomes import Failure, backoff_seconds
from raystill.teacher.api.probe import (
    CACHE_NAME,
    MAX_PROBE_REQUESTS,
    PROBE_KEY,
    Capabilities,
    confirm_endpoint,
    load_capabilities,
    probe_endpoint,
    save_capabilities,
)
from raystill.teacher.engine import GenerationRequest
from raystill.teacher.sampling import sampling_of

_ATTEMPTS = 3
_PROBE_BODY_BYTES = 512  # no body of the probe is longer, and no text has more tokens than bytes


async def meet_endpoint(
    endpoint: KnownEndpoint, output: Path, store: TeacherStore, spending: Spending
) -> Capabilities:
    """Probe the endpoint, or confirm what an earlier start of this stage found out.

    Raises RemoteError where it refuses, does not answer, or the budget does not allow the question.
    """
    closed = endpoint.closed
    wanted = endpoint.wanted_logprobs
    request = _probe_request(endpoint, wanted)
    cache, base_url, model = output / CACHE_NAME, endpoint.address.base_url, closed.model.name
    known = load_capabilities(cache, base_url, model, wanted)
    async with _open_client(endpoint) as client:
        sender = _PayingSender(client, endpoint, store, spending)
        try:
            if known is not None:
                await confirm_endpoint(sender.send, request, model, known, endpoint.where)
                return known
            known = await probe_endpoint(sender.send, request, model, endpoint.where)
        finally:
            sender.close()
    save_capabilities(cache, base_url, model, known)
    return known


@dataclass(frozen=True)
class Asked:
    """What an endpoint can do, and what it took to find out; `at_risk_usd` may be billed besides."""

    capabilities: Capabilities
    requests: int
    cost_usd: float
    at_risk_usd: float


async def ask_capabilities(endpoint: KnownEndpoint, num_logprobs: int, store: TeacherStore | None) -> Asked:
    """Probe the endpoint outside a run, within its budget; the cost counts in `store`, where there is one.

    Raises like `meet_endpoint`.
    """
    spending = Spending(0.0, 0.0, 0.0, 0.0) if store is None else load_spending(store)
    async with _open_client(endpoint) as client:
        sender = _PayingSender(client, endpoint, store, spending)
        try:
            known = await probe_endpoint(
                sender.send,
                _probe_request(endpoint, num_logprobs),
                endpoint.closed.model.name,
                endpoint.where,
            )
        finally:
            sender.close()
    return Asked(known, sender.requests, sender.cost_usd, sender.at_risk_usd)


def probe_cost_usd(endpoint: KnownEndpoint) -> float:
    """The most that `ask_capabilities` can cost at the configured prices, if nothing is asked twice."""
    prices = Prices.from_config(endpoint.closed.prices)
    longest = endpoint.closed.pipeline.max_new_tokens
    # One of them asks for two answers.
    return (MAX_PROBE_REQUESTS + 1) * prices.worst_case(_PROBE_BODY_BYTES, longest)


def _open_client(endpoint: KnownEndpoint) -> ApiClient:
    return ApiClient(
        endpoint.address,
        read_key(endpoint.closed.endpoint),
        timeout_s=endpoint.closed.endpoint.request_timeout_s,
        connections=1,
        checks_ids=False,
    )


def _probe_request(endpoint: KnownEndpoint, num_logprobs: int) -> GenerationRequest:
    return GenerationRequest(
        key=PROBE_KEY,
        prompt_token_ids=np.zeros(0, np.int32),
        sampling=sampling_of(endpoint.config, "train"),
        seed=0,
        num_logprobs=num_logprobs,
    )


class _PayingSender:
    """Sends with a few attempts at what may pass, within the budget, and writes down what it cost."""

    def __init__(
        self, client: ApiClient, endpoint: KnownEndpoint, store: TeacherStore | None, spending: Spending
    ) -> None:
        self._client = client
        self._prices = Prices.from_config(endpoint.closed.prices)
        self._limit = endpoint.closed.pipeline.max_new_tokens
        cap = endpoint.closed.budget.max_cost_usd
        self._budget = Budget(cap, spending.spent_usd, spending.at_risk_usd)
        self._ledger = None if store is None else RiskLedger(store)
        self.requests, self.cost_usd, self.at_risk_usd = 0, 0.0, 0.0
        self._noise = random.Random()

    async def send(self, body: bytes) -> Answered | Failure:
        """Ask; raises RemoteError where the budget doesn't allow it."""
        for attempt in range(1, _ATTEMPTS + 1):
            outcome = await self._send_once(body)
            if isinstance(outcome, Answered) or outcome.action not in ("retry", "throttle"):
                return outcome
            if attempt < _ATTEMPTS:
                await asyncio.sleep(backoff_seconds(attempt, outcome.retry_after, self._noise))
        return outcome

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()

    async def _send_once(self, body: bytes) -> Answered | Failure:
        worst = self._prices.worst_case(len(body), self._limit)
        if not self._budget.allows(worst):
            raise self._too_dear(worst)
        outcome = await self._client.send(PROBE_KEY, body)
        self.requests += 1
        cost = risk = 0.0
        if outcome.usage is not None:
            cost = self._prices.priced(outcome.usage).cost_usd
        elif isinstance(outcome, Answered) or outcome.may_be_billed:
            risk = worst
        self._budget.settle(0.0, cost, risk)
        self.cost_usd += cost
        self.at_risk_usd += risk
        if self._ledger is not None and (cost or risk):
            self._ledger.append([RiskEntry(PROBE_KEY, "probe", risk, cost)])
        return outcome

    def _too_dear(self, worst: float) -> RemoteError:
        return budget_error(self._budget, worst)

"""An engine in front of a scripted endpoint, as tests use it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raystill.teacher.api.address import Address
from raystill.teacher.api.budget import Prices
from raystill.teacher.api.client import ApiClient
from raystill.teacher.api.engine import EngineSettings, OpenAIEngine, PaidAttempts
from raystill.teacher.api.gate import GateSettings, RequestGate
from raystill.teacher.api.ledger import RiskEntry
from raystill.teacher.api.outcomes import Failure
from raystill.teacher.api.wire import BodyShape
from raystill.teacher.engine import Generation, GenerationRequest, Sampling

PRICES = Prices(1e-6, 1e-6, 2e-6)


@dataclass
class Heard:
    """What an engine told its observer."""

    requests: int = 0
    retries: int = 0
    in_flight: int = 0
    failures: list[str] = field(default_factory=list)
    risks: list[RiskEntry] = field(default_factory=list)
    paid: list[PaidAttempts] = field(default_factory=list)

    def on_request(self, is_retry: bool) -> None:
        self.requests += 1
        self.retries += is_retry
        self.in_flight += 1

    def on_ended(self, failure: Failure | None) -> None:
        self.in_flight -= 1
        self.failures += [] if failure is None else [failure.code]

    def on_risk(self, entry: RiskEntry) -> None:
        self.risks.append(entry)

    def on_paid(self, paid: PaidAttempts) -> None:
        self.paid.append(paid)


@dataclass
class Asked:
    """One test's engine and what came of it. `outcomes` by row, errors as values."""

    heard: Heard
    outcomes: list[Generation | BaseException]
    gate: RequestGate

    @property
    def generations(self) -> list[Generation]:
        """All outcomes, which must be answers."""
        assert all(isinstance(outcome, Generation) for outcome in self.outcomes), self.outcomes
        return [outcome for outcome in self.outcomes if isinstance(outcome, Generation)]


def messages_of(index: int, text: str = "") -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {index} {text}".strip()}]


def request_of(index: int, text: str = "", num_logprobs: int = 0, **sampling: Any) -> GenerationRequest:
    drawn = {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_new_tokens": 64, **sampling}
    return GenerationRequest(
        key=f"{index + 1:032x}",
        prompt_token_ids=np.zeros(0, np.int32),
        sampling=Sampling(**drawn),
        seed=index,
        num_logprobs=num_logprobs,
        messages=json.dumps(messages_of(index, text)),
    )


def ask(
    base_url: str,
    requests: list[GenerationRequest],
    *,
    in_flight: int = 16,
    timeout_s: float = 60.0,
    max_attempts: int = 6,
    shape: BodyShape | None = None,
    reasoning: Any = "keep",
    key: str | None = None,
    gate: Any = None,
    chat: Any = None,
) -> Asked:
    """Ask for all `requests` at once, as a worker does."""

    async def run() -> Asked:
        heard = Heard()
        settings = EngineSettings(
            shape=shape or BodyShape("scripted"), prices=PRICES, where="scripted endpoint",
            max_in_flight=in_flight, max_attempts=max_attempts, reasoning=reasoning,
        )  # fmt: skip
        own = RequestGate(gate or GateSettings(in_flight, None, None, None, 64))
        address = Address(base_url, "localhost/v1", True)
        async with ApiClient(
            address, key, timeout_s=timeout_s, connections=in_flight, checks_ids=True
        ) as client:
            engine = OpenAIEngine(settings, client, own, observer=heard, chat=chat)
            slots = asyncio.Semaphore(engine.rows_in_flight)

            async def one(request: GenerationRequest) -> Generation:
                async with slots:
                    return await engine.generate(request)

            outcomes = await asyncio.gather(*map(one, requests), return_exceptions=True)
        return Asked(heard, list(outcomes), own)

    return asyncio.run(run())


def in_loop(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine function in a loop of its own."""
    return asyncio.run(work())

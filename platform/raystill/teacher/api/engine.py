"""The openai engine: one row to one answer, through the gate, as often as it takes and is allowed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from raystill.errors import ConfigError
from raystill.store.records import TopKSignal
from raystill.teacher.api.budget import Prices
from raystill.teacher.api.client import ApiClient
from raystill.teacher.api.gate import Ask, Gate, Permit, Settlement
from raystill.teacher.api.ledger import RiskEntry
from raystill.teacher.api.outcomes import Failure, abort_error, backoff_seconds
from raystill.teacher.api.reader import AnswerReader
from raystill.teacher.api.wire import BodyShape, build_body
from raystill.teacher.engine import Generation, GenerationRequest, ScoreRequest
from raystill.teacher.errors import EngineRowError
from raystill.teacher.reasoning import ReasoningMode

if TYPE_CHECKING:
    from raystill.text.chat import ChatFormat

# Rows that wait for their next attempt hold no place: fresh rows are sent meanwhile.
_ROWS_PER_PLACE = 2
_SPARE_ROWS = 64
# Tokens per UTF-8 byte of prompts: at most one; until answers say what is usual, a third.
_FIRST_TOKENS_PER_BYTE = 1.0 / 3.0


class ApiRowError(EngineRowError):
    """A row that is given up: after how many requests, and what they were billed."""

    def __init__(self, failure: Failure, attempts: int, cost_usd: float) -> None:
        super().__init__(failure.code, failure.message)
        self.failure = failure
        self.attempts = attempts
        self.cost_usd = cost_usd


@dataclass(frozen=True)
class PaidAttempts:
    """Billed requests of a row that gave nothing, and of which no reject tells."""

    key: str
    code: str
    reason: str
    attempts: int
    cost_usd: float


@dataclass(frozen=True)
class EngineSettings:
    """What the engine needs to know; nothing in it is secret."""

    shape: BodyShape
    prices: Prices
    where: str
    max_in_flight: int
    max_attempts: int
    reasoning: ReasoningMode


def rows_in_flight(max_in_flight: int) -> int:
    """Rows that keep the gate supplied while others wait for their next attempt."""
    return _ROWS_PER_PLACE * max_in_flight + _SPARE_ROWS


class RequestObserver(Protocol):
    """Hears of what an engine's requests cost, besides the answers that it returns."""

    def on_request(self, is_retry: bool) -> None:
        """A request is being sent."""
        ...

    def on_ended(self, failure: Failure | None) -> None:
        """A request has ended: None where with an answer."""
        ...

    def on_risk(self, entry: RiskEntry) -> None:
        """A request ended without an answer, and may be billed."""
        ...

    def on_paid(self, paid: PaidAttempts) -> None:
        """A row had billed attempts in vain, and has an answer now or waits for the next run."""
        ...


class OpenAIEngine:
    """`TeacherEngine` over HTTP. `observer` hears of every request. `chat` is the served model's, where it is
    known.
    """

    def __init__(
        self,
        settings: EngineSettings,
        client: ApiClient,
        gate: Gate,
        *,
        observer: RequestObserver,
        chat: ChatFormat | None = None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._gate = gate
        self._observer = observer
        self._reader = AnswerReader(settings.prices, settings.reasoning, chat)
        self._tokens_per_byte = _FIRST_TOKENS_PER_BYTE
        self._noise = random.Random()

    @property
    def rows_in_flight(self) -> int:
        """See `rows_in_flight`."""
        return rows_in_flight(self._settings.max_in_flight)

    async def generate(self, request: GenerationRequest) -> Generation:
        """One row's answer, after as many attempts as it takes.

        Raises ApiRowError for a row that is given up, and the error that the gate is closed with: a refused
        key, a model that isn't there, a budget that is used up.
        """
        body = build_body(self._settings.shape, request)
        worst = self._reader.worst_usd(request, body)
        wasted: list[Failure] = []
        try:
            return await self._generate(request, body, worst, wasted)
        except ApiRowError:
            wasted.clear()  # the reject says what they cost
            raise
        finally:
            if wasted:
                last = wasted[-1]
                paid = PaidAttempts(request.key, last.code, last.message, len(wasted), _cost(wasted))
                self._observer.on_paid(paid)

    async def _generate(
        self, request: GenerationRequest, body: bytes, worst: float, wasted: list[Failure]
    ) -> Generation:
        """Ask until there is an answer; `wasted` collects billed failures."""
        for attempt in range(1, self._settings.max_attempts + 1):
            ask = Ask(self._expected_prompt_tokens(request, body), worst, is_retry=attempt > 1)
            permit = await self._gate.acquire(ask)
            self._observer.on_request(attempt > 1)
            outcome = await self._send_once(request, body, permit, attempt)
            if isinstance(outcome, Generation):
                return outcome
            if outcome.usage is not None and outcome.usage.cost_usd:
                wasted.append(outcome)
            if outcome.action == "abort":
                raise abort_error(outcome, self._settings.where)
            if outcome.action == "reject" or attempt == self._settings.max_attempts:
                raise ApiRowError(outcome, attempt, _cost(wasted))
            await asyncio.sleep(outcome.retry_after or 0.0)
        raise AssertionError("max_attempts is at least 1")

    async def score(self, request: ScoreRequest) -> TopKSignal:
        """Raises ConfigError: no chat API takes a completion and returns its logprobs."""
        raise ConfigError(
            "an endpoint can't score completions: chat APIs return logprobs of what they generate only",
            where="teacher.closed",
            fix="add a teacher.open that scores the answers, or set teacher.signals.capture: generation "
            "where the endpoint returns logprobs",
        )

    def shutdown(self) -> None:
        """There is no process to end; the owner closes the client."""

    async def _send_once(
        self, request: GenerationRequest, body: bytes, permit: Permit, attempt: int
    ) -> Generation | Failure:
        """One request; the permit goes back whatever happens. A failure comes with the wait to follow it."""
        settlement, code = Settlement(at_risk_usd=permit.reserved_usd), "interrupted"
        ended: Failure | None = None
        try:
            sent = await self._client.send(request.key, body)
            outcome = self._reader.read(request, sent, permit.reserved_usd)
            if isinstance(outcome, Failure):
                wait = backoff_seconds(attempt, outcome.retry_after, self._noise)
                outcome, code = replace(outcome, retry_after=wait), outcome.code
                ended = outcome
            settlement = self._settle(request, body, outcome, permit)
            if isinstance(outcome, Failure) and outcome.action == "abort":
                settlement = replace(settlement, stop=abort_error(outcome, self._settings.where))
        finally:
            self._observer.on_ended(ended)
            await self._gate.release(permit, settlement)
            if settlement.at_risk_usd:
                self._observer.on_risk(RiskEntry(request.key, code, settlement.at_risk_usd))
        return outcome

    def _settle(
        self, request: GenerationRequest, body: bytes, outcome: Generation | Failure, permit: Permit
    ) -> Settlement:
        usage = outcome.usage
        if isinstance(outcome, Generation):
            assert usage is not None
            if usage.prompt_tokens:
                self._tokens_per_byte += 0.05 * (usage.prompt_tokens / len(body) - self._tokens_per_byte)
            total = usage.prompt_tokens + usage.completion_tokens
            return Settlement(total, usage.completion_tokens, usage.cost_usd)
        if usage is not None:
            return Settlement(usage.prompt_tokens + usage.completion_tokens, None, usage.cost_usd)
        if outcome.may_be_billed:
            return Settlement(at_risk_usd=permit.reserved_usd)
        throttled = outcome.retry_after if outcome.action == "throttle" else None
        return Settlement(tokens=0, throttled_seconds=throttled)

    def _expected_prompt_tokens(self, request: GenerationRequest, body: bytes) -> float:
        return float(len(request.prompt_token_ids)) or len(body) * self._tokens_per_byte


def _cost(failures: list[Failure]) -> float:
    return sum(failure.usage.cost_usd for failure in failures if failure.usage is not None)

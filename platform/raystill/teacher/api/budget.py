"""What requests cost, and the cap: cost is reserved before a request is sent, and settled from its usage.

All amounts are USD. The reservation of a request is the most that it can cost, so what has been spent plus
what is reserved never exceeds the cap, whatever the endpoint answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from raystill.config.closed_teacher import ClosedPrices
from raystill.errors import RemoteError
from raystill.teacher.engine import Usage

CAP_KEY = "teacher.closed.budget.max_cost_usd"
_MILLION = 1e6
# A completion of a reasoning model counts its thoughts; endpoints may exceed the limit by an end token.
_SLACK_TOKENS = 8


@dataclass(frozen=True)
class Prices:
    """USD per token."""

    prompt: float
    cached_prompt: float
    completion: float

    @classmethod
    def from_config(cls, prices: ClosedPrices, *, is_batch: bool = False) -> Prices:
        """`teacher.closed.prices`; `is_batch` applies the Batch API's factor."""
        factor = prices.batch_factor if is_batch else 1.0
        cached = prices.prompt if prices.cached_prompt is None else prices.cached_prompt
        return cls(
            prompt=prices.prompt * factor / _MILLION,
            cached_prompt=cached * factor / _MILLION,
            completion=prices.completion * factor / _MILLION,
        )

    @property
    def are_set(self) -> bool:
        """Whether anything costs anything."""
        return max(self.prompt, self.cached_prompt, self.completion) > 0.0

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_prompt_tokens: int = 0) -> float:
        """Cost of one answer. Cached tokens are part of the prompt's, thoughts of the completion's."""
        cached = min(cached_prompt_tokens, prompt_tokens)
        prompt = (prompt_tokens - cached) * self.prompt + cached * self.cached_prompt
        return prompt + completion_tokens * self.completion

    def worst_case(self, prompt_tokens: int, max_new_tokens: int) -> float:
        """The most that one request can cost."""
        dearest = max(self.prompt, self.cached_prompt)
        return prompt_tokens * dearest + (max_new_tokens + _SLACK_TOKENS) * self.completion

    def priced(self, usage: Usage) -> Usage:
        """`usage` with its cost."""
        cost = self.cost(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)
        return Usage(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_prompt_tokens,
            usage.reasoning_tokens,
            round(cost, 12),
        )


@dataclass
class Budget:
    """Spent, at risk and reserved against `cap_usd` (None: no cap, only counting).

    `at_risk_usd` is the worst case of requests that ended without an answer and may be billed all the same
    (a timeout, a connection that broke after the request was sent); it counts against the cap.
    """

    cap_usd: float | None
    spent_usd: float = 0.0
    at_risk_usd: float = 0.0
    reserved_usd: float = 0.0

    def allows(self, amount: float) -> bool:
        """Whether a request that may cost `amount` can be sent without exceeding the cap."""
        if self.cap_usd is None:
            return True
        return self.committed_usd + amount <= self.cap_usd * (1.0 + 1e-12)

    @property
    def committed_usd(self) -> float:
        """All that may end up on the bill."""
        return self.spent_usd + self.at_risk_usd + self.reserved_usd

    def reserve(self, amount: float) -> None:
        """Set `amount` aside for a request that is about to be sent."""
        self.reserved_usd += amount

    def settle(self, reserved: float, spent: float, at_risk: float = 0.0) -> None:
        """A request has ended: its reservation becomes what it cost."""
        self.reserved_usd = max(0.0, self.reserved_usd - reserved)
        self.spent_usd += spent
        self.at_risk_usd += at_risk


def budget_error(budget: Budget, worst_usd: float) -> RemoteError:
    """The error that stops a run whose next request could exceed the cap."""
    risk = f", up to ${budget.at_risk_usd:.4f} more may be billed for requests without an answer"
    return RemoteError(
        f"the budget is used up: ${budget.spent_usd:.4f} of ${budget.cap_usd:.4f} spent"
        f"{risk if budget.at_risk_usd else ''}, and the next request could cost ${worst_usd:.4f}",
        where=CAP_KEY,
        fix=f"raise {CAP_KEY} and run again: every answer is kept, and only missing rows are asked",
    )

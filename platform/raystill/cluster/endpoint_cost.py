"""What a teacher behind an API will cost and how long its rates make it take, before anything is sent."""

from __future__ import annotations

from raystill.cluster.workload import Workload
from raystill.config.schema import Config

_MILLION = 1e6


def estimate_cost_usd(config: Config, workload: Workload) -> float | None:
    """USD for all answers at the prices of `teacher.closed`; None for an open teacher or an unknown size."""
    closed = config.teacher.closed
    if closed is None or workload.completion_tokens is None or workload.prompt_tokens is None:
        return None
    prompt_tokens = workload.prompt_tokens * (workload.requests or 0) / max(1, workload.rows or 1)
    factor = closed.prices.batch_factor if closed.endpoint.mode == "batch" else 1.0
    usd = prompt_tokens * closed.prices.prompt + workload.completion_tokens * closed.prices.completion
    return usd * factor / _MILLION


def estimate_seconds(config: Config, workload: Workload) -> float | None:
    """The least time that the rates of `teacher.closed.limits` allow; None where they say nothing."""
    closed = config.teacher.closed
    if closed is None or workload.requests is None or closed.endpoint.mode == "batch":
        return None
    bounds = []
    if closed.limits.requests_per_minute is not None:
        bounds.append(60.0 * workload.requests / closed.limits.requests_per_minute)
    tokens = (workload.prompt_tokens, workload.completion_tokens)
    if closed.limits.tokens_per_minute is not None and tokens[0] is not None and tokens[1] is not None:
        bounds.append(60.0 * (tokens[0] + tokens[1]) / closed.limits.tokens_per_minute)
    return max(bounds) if bounds else None

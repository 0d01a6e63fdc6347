"""What a model behind an API will cost and how long its rates make it take, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from raystill.cluster.workload import Workload
from raystill.config.closed_teacher import ClosedTeacher
from raystill.config.schema import Config
from raystill.errors import Problem

_MILLION = 1e6


@dataclass(frozen=True)
class EndpointWork:
    """What an endpoint is asked: tokens are those of all requests together; None where nothing says."""

    requests: int | None
    prompt_tokens: int | None
    completion_tokens: int | None


def teacher_work(workload: Workload) -> EndpointWork:
    """What the teacher is asked: every sample of a prompt pays for the prompt again."""
    prompt_tokens = workload.prompt_tokens
    if prompt_tokens is not None:
        prompt_tokens = prompt_tokens * (workload.requests or 0) // max(1, workload.rows or 1)
    return EndpointWork(workload.requests, prompt_tokens, workload.completion_tokens)


def estimate_cost_usd(config: Config, workload: Workload) -> float | None:
    """USD for all answers at the prices of `teacher.closed`; None for an open teacher or an unknown size."""
    closed = config.teacher.closed
    return None if closed is None else compute_cost_usd(closed, teacher_work(workload))


def estimate_seconds(config: Config, workload: Workload) -> float | None:
    """The least time that the rates of `teacher.closed.limits` allow; None where they say nothing."""
    closed = config.teacher.closed
    if closed is None:
        return None
    work = replace(teacher_work(workload), prompt_tokens=workload.prompt_tokens)
    return compute_least_seconds(closed, work)


def compute_cost_usd(closed: ClosedTeacher, work: EndpointWork) -> float | None:
    """USD for `work` at the endpoint's prices; None where its size is unknown."""
    if work.prompt_tokens is None or work.completion_tokens is None:
        return None
    factor = closed.prices.batch_factor if closed.endpoint.mode == "batch" else 1.0
    usd = work.prompt_tokens * closed.prices.prompt + work.completion_tokens * closed.prices.completion
    return usd * factor / _MILLION


def compute_least_seconds(closed: ClosedTeacher, work: EndpointWork) -> float | None:
    """The least time that the endpoint's rates allow; None where they say nothing."""
    if work.requests is None or closed.endpoint.mode == "batch":
        return None
    bounds = []
    if closed.limits.requests_per_minute is not None:
        bounds.append(60.0 * work.requests / closed.limits.requests_per_minute)
    tokens = (work.prompt_tokens, work.completion_tokens)
    if closed.limits.tokens_per_minute is not None and tokens[0] is not None and tokens[1] is not None:
        bounds.append(60.0 * (tokens[0] + tokens[1]) / closed.limits.tokens_per_minute)
    return max(bounds) if bounds else None


def find_budget_warning(
    section: Literal["teacher", "grade"], closed: ClosedTeacher, work: EndpointWork
) -> Problem | None:
    """What the budget of `section`.closed will say to `work`; None where it lets it pass."""
    usd = compute_cost_usd(closed, work)
    if usd is None:
        return None
    cap = closed.budget.max_cost_usd
    if cap is not None and usd > cap:
        return Problem(
            f"{section}.closed costs about ${usd:,.2f}, and {section}.closed.budget.max_cost_usd is "
            f"${cap:,.2f}: the run stops there and keeps its answers",
            f"{section}.closed.budget.max_cost_usd",
            "a higher cap lets it go on",
        )
    longest = (work.requests or 0) * closed.pipeline.max_new_tokens
    worst = compute_cost_usd(closed, replace(work, completion_tokens=longest)) or 0.0
    if cap is None and worst > closed.budget.ask_above_usd:
        return Problem(
            f"{section}.closed may cost up to ${worst:,.2f}, and there is no cap: nothing is sent",
            f"{section}.closed.budget.max_cost_usd",
            "set it, or ask_above_usd beside it",
        )
    return None

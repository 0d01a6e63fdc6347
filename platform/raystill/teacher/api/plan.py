"""Which requests a closed teacher gets in a run, and what they will cost at most likely."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from raystill.errors import ConfigError
from raystill.store.store import TeacherStore
from raystill.teacher.api.budget import Prices
from raystill.teacher.api.identify import KnownEndpoint
from raystill.teacher.plan_requests import RequestPlan, RequestPlanner
from raystill.teacher.shards import Shard

# Of English prose and JSON; other scripts take more.
_TOKENS_PER_BYTE = 0.3


@dataclass(frozen=True)
class Estimate:
    """What the missing rows of a run use, if every completion is as long as is allowed."""

    rows: int
    prompt_tokens: int
    completion_tokens: int
    usd: float


def plan_api_requests(
    endpoint: KnownEndpoint, store: TeacherStore, prompt_table: Path, table: Path, scratch: Path
) -> tuple[RequestPlan, Estimate]:
    """Name every request, cut what has neither an answer nor a reject into shards under `scratch`, and
    estimate its cost.

    Raises DataError for a prompt that the known chat template refuses.
    """
    planner = RequestPlanner(
        config=endpoint.config,
        identity=endpoint.identity,
        ask=endpoint.ask,
        facts={"tool_schema": endpoint.tool_schema and endpoint.tool_schema.sha256},
        arrange=lambda rows: rows,
        num_workers=endpoint.closed.limits.num_clients,
    )
    plan = planner.plan(store, prompt_table, table, scratch)
    return plan, _estimate(endpoint, plan.shards)


def require_budget(endpoint: KnownEndpoint, estimate: Estimate) -> None:
    """Raise ConfigError where a run without a cap would cost more than the user wants to be asked for."""
    budget, prices = endpoint.closed.budget, endpoint.closed.prices
    if budget.max_cost_usd is not None or estimate.usd <= budget.ask_above_usd:
        return
    raise ConfigError(
        f"{estimate.rows:,} requests may cost ${estimate.usd:,.2f}, and there is no cap (basis: about "
        f"{estimate.prompt_tokens:,} prompt tokens at ${prices.prompt:g} and at most "
        f"{estimate.completion_tokens:,} completion tokens at ${prices.completion:g} per million)",
        "teacher.closed.budget.max_cost_usd",
        f"set it to what you want to spend at most, or teacher.closed.budget.ask_above_usd above "
        f"{estimate.usd:.2f} to go without a cap",
    )


def _estimate(endpoint: KnownEndpoint, shards: Iterable[Shard]) -> Estimate:
    rows = prompt_tokens = completion_tokens = 0
    longest = endpoint.closed.pipeline.max_new_tokens
    for shard in shards:
        sizes = shard.table(("messages", "prompt_token_ids", "sampling"))
        bytes_N = pc.binary_length(sizes.column("messages")).to_numpy()
        ids_N = pc.list_value_length(sizes.column("prompt_token_ids")).to_numpy()
        prompt_tokens += int(np.where(ids_N > 0, ids_N, np.rint(bytes_N * _TOKENS_PER_BYTE)).sum())
        own = [json.loads(text) for text in sizes.column("sampling").drop_null().to_pylist()]
        completion_tokens += longest * (sizes.num_rows - len(own))
        completion_tokens += sum(asked.get("max_new_tokens", longest) for asked in own)
        rows += shard.num_rows
    prices = Prices.from_config(endpoint.closed.prices, is_batch=endpoint.closed.endpoint.mode == "batch")
    return Estimate(rows, prompt_tokens, completion_tokens, prices.cost(prompt_tokens, completion_tokens))

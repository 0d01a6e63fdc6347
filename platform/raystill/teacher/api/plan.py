"""Which requests a closed teacher gets in a run, and what they will cost at most likely."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from raystill.errors import ConfigError
from raystill.store.identity import partition_of
from raystill.store.rejects import load_answered
from raystill.store.requests import REQUEST_SCHEMA, Request
from raystill.store.store import TeacherStore
from raystill.teacher.api.budget import Prices
from raystill.teacher.api.identify import KnownEndpoint
from raystill.teacher.plan_requests import RequestPlan
from raystill.teacher.shards import ShardWriter, shard_rows
from raystill.text.prompt_table import iter_prompt_batches

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
    endpoint: KnownEndpoint, store: TeacherStore, prompt_table: Path, scratch: Path
) -> tuple[RequestPlan, Estimate]:
    """Name every request, cut what has neither an answer nor a reject into shards under `scratch`, and
    estimate its cost.

    Raises DataError for a prompt that the known chat template refuses.
    """
    writer = ShardWriter(scratch, "generate")
    has_schemas = False
    for batch in iter_prompt_batches(prompt_table):
        for prompt in batch:
            has_schemas = has_schemas or endpoint.sampling(prompt).json_schema is not None
            for row in endpoint.request_rows(prompt):
                writer.add(partition_of(row["key"], store.num_partitions), row)
    requests: list[Request] = []
    keys: dict[int, frozenset[str]] = {}
    pending: dict[int, pa.Table] = {}
    for partition, table in writer.iter_partitions():
        requests += [Request(**row) for row in table.select(REQUEST_SCHEMA.names).to_pylist()]
        keys[partition] = frozenset(table.column("key").to_pylist())
        pending[partition] = table.filter(load_answered(store, partition).is_pending(table.column("key")))
    estimate = _estimate(endpoint, pending.values())
    num_clients = endpoint.closed.limits.num_clients
    size = shard_rows(endpoint.config.teacher.store.rows_per_part, estimate.rows, num_clients)
    shards = [shard for part, table in pending.items() for shard in writer.cut(part, table, size)]
    plan = RequestPlan(
        tuple(requests), keys, tuple(shards), len(requests) - estimate.rows, has_schemas=has_schemas
    )
    return plan, estimate


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


def _estimate(endpoint: KnownEndpoint, tables: Iterable[pa.Table]) -> Estimate:
    rows = prompt_tokens = completion_tokens = 0
    longest = endpoint.closed.pipeline.max_new_tokens
    columns = ("messages", "prompt_token_ids", "sampling")
    for table in tables:
        rows += table.num_rows
        for messages, ids, sampling in zip(
            *(table.column(name).to_pylist() for name in columns), strict=True
        ):
            prompt_tokens += len(ids) or round(len(messages.encode("utf-8")) * _TOKENS_PER_BYTE)
            asked = json.loads(sampling) if sampling else {}
            completion_tokens += asked.get("max_new_tokens", longest)
    prices = Prices.from_config(endpoint.closed.prices, is_batch=endpoint.closed.endpoint.mode == "batch")
    return Estimate(rows, prompt_tokens, completion_tokens, prices.cost(prompt_tokens, completion_tokens))

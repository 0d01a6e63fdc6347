"""A few completions before the whole job: what they look like, and what the rest will take.

The rows are real: they enter the store like any others, so nothing is asked or paid for twice, and the same
preview again costs nothing. Which prompts are shown follows from their keys, which are as good as random.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc

from raystill.config.prepared import find_prepared
from raystill.errors import ConfigError
from raystill.run.scratch import scratch_directory
from raystill.run.stage import StageContext
from raystill.store.identity import partition_of
from raystill.store.reader import iter_rows, iter_tables
from raystill.store.records import TeacherRow
from raystill.store.requests import Request, iter_request_tables
from raystill.store.store import TeacherStore
from raystill.teacher.plan_requests import RequestPlan
from raystill.teacher.shards import Shard, ShardWriter

_CONFIDENCE = 1.96  # of a normal distribution, for 95 %


@dataclass(frozen=True)
class Sample:
    """One completion. `reject` is the code and reason where there is none."""

    prompt_id: str
    prompt: str
    completion: str
    reasoning: str | None
    finish_reason: str
    flags: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    cost_usd: float
    reject: str | None = None


@dataclass(frozen=True)
class Estimate:
    """What is left after the preview, as mean and half width of a 95 % confidence interval over the samples
    (None for fewer than two).

    `seconds` is at the speed of the samples, which had the engine to themselves: a full engine is faster.
    """

    requests: int
    completion_tokens: float
    completion_tokens_margin: float | None
    cost_usd: float
    cost_usd_margin: float | None
    seconds: float | None


@dataclass(frozen=True)
class Preview:
    """What a preview shows."""

    samples: tuple[Sample, ...]
    num_requests: int
    num_reused: int
    left: Estimate


def run_preview(context: StageContext, number: int) -> Preview:
    """Complete `number` prompts, store them, and say what the whole would take. Ray must be running.

    Raises what the stage generate raises, ConfigError where nothing is generated.
    """
    config = context.config
    if config.teacher.base.from_store is not None:
        raise ConfigError(
            "there is nothing to preview: the store's answers are taken as they are",
            where="teacher.base.from_store",
            fix="raystill store stats shows what it holds; remove the key to generate",
        )
    if find_prepared(config.teacher) is not None:
        raise ConfigError(
            "there is nothing to preview: a prepared dataset takes the place of generating",
            where="teacher.*.data.download",
            fix="raystill generate imports it; remove the key to generate",
        )
    with scratch_directory(context.output) as scratch:
        preview = _preview_closed if config.teacher.closed else _preview_open
        asked = preview(context, number, scratch)
    samples = _load_samples(asked.store, asked.chosen)
    left = _count_rows(asked.plan.shards) - asked.num_new
    return Preview(samples, asked.plan.num_requests, asked.plan.reused, _estimate(left, samples))


@dataclass(frozen=True)
class _Asked:
    """What a preview did: the whole plan, the requests that are shown, and how many of them were new."""

    store: TeacherStore
    plan: RequestPlan
    chosen: list[Request]
    num_new: int


def _preview_open(context: StageContext, number: int, scratch: Path) -> _Asked:
    from raystill.store.recover import prepare_store
    from raystill.teacher.generate_stage import build_orders, open_stage_store
    from raystill.teacher.identify import identify_teacher
    from raystill.teacher.open_requests import plan_open_requests
    from raystill.teacher.preflight import require_open_teacher
    from raystill.teacher.run_shards import run_shards

    teacher = identify_teacher(context.config)
    resumes = require_open_teacher(context.config).pipeline.resume
    store = open_stage_store(context, teacher.identity, resumes=resumes)
    prepare_store(store)
    plan = plan_open_requests(teacher, store, context.paths.prompt_table, context.paths.request_plan, scratch)
    chosen = choose_requests(plan.table, number)
    shards = _cut_chosen(plan.shards, chosen, store, scratch)
    blueprint, order = build_orders(teacher, store, plan, scratch)
    run_shards(shards, blueprint, order, context.events)
    return _Asked(store, plan, chosen, _count_rows(shards))


def _preview_closed(context: StageContext, number: int, scratch: Path) -> _Asked:
    from raystill.store.recover import prepare_store
    from raystill.teacher.api.generate import ask_endpoint
    from raystill.teacher.api.identify import identify_endpoint
    from raystill.teacher.api.plan import plan_api_requests
    from raystill.teacher.generate_stage import open_stage_store

    endpoint = identify_endpoint(context.config)
    store = open_stage_store(
        context, endpoint.identity, resumes=endpoint.closed.pipeline.resume, has_journal=True
    )
    prepare_store(store)
    plan, estimate = plan_api_requests(
        endpoint, store, context.paths.prompt_table, context.paths.request_plan, scratch
    )
    chosen = choose_requests(plan.table, number)
    shards = _cut_chosen(plan.shards, chosen, store, scratch)
    share = _count_rows(shards) / max(1, estimate.rows)
    asked = replace(
        estimate,
        rows=_count_rows(shards),
        prompt_tokens=round(share * estimate.prompt_tokens),
        completion_tokens=round(share * estimate.completion_tokens),
        usd=share * estimate.usd,
    )
    ask_endpoint(context, endpoint, store, replace(plan, shards=tuple(shards)), asked)
    return _Asked(store, plan, chosen, asked.rows)


def _count_rows(shards: Sequence[Shard]) -> int:
    return sum(shard.num_rows for shard in shards)


def choose_requests(table: Path, number: int) -> list[Request]:
    """The first samples of `number` prompts: training prompts first, smallest keys first."""
    chosen: dict[bool, list[Request]] = {True: [], False: []}
    for piece in iter_request_tables(table):
        first = piece.filter(pc.equal(piece.column("sample_index"), 0))
        is_train = pc.equal(first.column("split"), "train")
        for side, mask in ((True, is_train), (False, pc.invert(is_train))):
            found = first.filter(mask).slice(0, number - len(chosen[side]))
            chosen[side] += [Request(**row) for row in found.to_pylist()]
        if len(chosen[True]) == number:
            break
    return [*chosen[True], *chosen[False]][:number]


def _cut_chosen(
    shards: Sequence[Shard], chosen: Sequence[Request], store: TeacherStore, scratch: Path
) -> list[Shard]:
    """Those of the chosen rows that are still to be done, as shards of their own."""
    keys = {request.key for request in chosen}
    partitions = {partition_of(key, store.num_partitions) for key in keys}
    writer = ShardWriter(scratch / "preview", "generate", store.num_partitions)
    for shard in shards:
        if shard.partition in partitions:
            for row in shard.read():
                if row["key"] in keys:
                    writer.add(row)
    return [
        shard
        for partition, table in writer.iter_partitions()
        for shard in writer.cut(partition, table, table.num_rows)
    ]


def _load_samples(store: TeacherStore, chosen: Sequence[Request]) -> tuple[Sample, ...]:
    keys = {request.key for request in chosen}
    partitions = sorted({partition_of(key, store.num_partitions) for key in keys})
    found = {row.key: _sample(row) for row in iter_rows(store, keys=keys, partitions=partitions)}
    for table in iter_tables(store, kind="rejects", keys=keys, partitions=partitions):
        for reject in table.to_pylist():
            if reject["key"] not in found:
                found[reject["key"]] = _rejected(reject)
    return tuple(found[request.key] for request in chosen if request.key in found)


def _sample(row: TeacherRow) -> Sample:
    usage = json.loads(row.usage) if row.usage else {}
    return Sample(
        prompt_id=row.prompt_id,
        prompt=str(json.loads(row.messages)[-1]["content"]),
        completion=row.completion,
        reasoning=row.reasoning,
        finish_reason=row.finish_reason,
        flags=row.flags,
        prompt_tokens=usage.get("prompt_tokens", len(row.prompt_token_ids)),
        completion_tokens=usage.get("completion_tokens", len(row.completion_token_ids)),
        seconds=row.seconds,
        cost_usd=row.cost_usd,
    )


def _rejected(reject: dict[str, str]) -> Sample:
    why = f"{reject['code']}: {reject['reason']}"
    return Sample(reject["prompt_id"], "", "", None, "rejected", (), 0, 0, 0.0, 0.0, reject=why)


def _estimate(left: int, samples: Sequence[Sample]) -> Estimate:
    done = [sample for sample in samples if sample.reject is None]
    tokens, tokens_margin = _mean_and_margin([float(sample.completion_tokens) for sample in done])
    cost, cost_margin = _mean_and_margin([sample.cost_usd for sample in done])
    longest = max((sample.seconds for sample in done), default=0.0)
    rate = sum(sample.completion_tokens for sample in done) / longest if longest > 0 else 0.0
    return Estimate(
        requests=left,
        completion_tokens=left * tokens,
        completion_tokens_margin=None if tokens_margin is None else left * tokens_margin,
        cost_usd=left * cost,
        cost_usd_margin=None if cost_margin is None else left * cost_margin,
        seconds=left * tokens / rate if rate > 0 else None,
    )


def _mean_and_margin(values: list[float]) -> tuple[float, float | None]:
    mean = sum(values) / max(1, len(values))
    if len(values) < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, _CONFIDENCE * math.sqrt(variance / len(values))

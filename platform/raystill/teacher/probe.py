"""How far two engines disagree about the same tokens: the run's own engine and another, on a few stored rows.

vLLM and transformers compute the same distributions with other kernels, and in bfloat16 with other roundings.
The difference is what a stored logprob is worth: losses that are fitted below it fit noise.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.run.ray_data import map_items
from raystill.store.identity import partition_of
from raystill.store.records import Float32Array
from raystill.store.store import TeacherStore
from raystill.teacher.build_engine import EngineBlueprint, build_engine
from raystill.teacher.engine import ScoreRequest, TeacherEngine
from raystill.teacher.errors import EngineRowError
from raystill.teacher.identify import KnownTeacher
from raystill.teacher.preflight import preflight
from raystill.teacher.tier_work import scorer_rows

_ROWS = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("prompt_token_ids", pa.list_(pa.int32())),
        pa.field("completion_token_ids", pa.list_(pa.int32())),
    ]
)
_LOGPROBS = pa.schema([pa.field("key", pa.string()), pa.field("logprobs", pa.list_(pa.float32()))])


def probe_engines(
    teacher: KnownTeacher, store: TeacherStore, keys: Set[str], num_rows: int, scratch: Path
) -> dict[str, Any]:
    """Score `num_rows` rows of `keys` with the run's engine and with transformers (vLLM, if that is the run's
    own), one after the other. Ray must be running.

    Returns the engines, rows, tokens, and `mean_abs`, `p99_abs` and `max_abs` of the differences between the
    sampled tokens' logprobs. Raises what `preflight` raises, and DataError where nothing can be compared.
    """
    own = teacher.facts.engine
    other = "vllm" if own == "transformers" else "transformers"
    blueprint = teacher.blueprint(num_logprobs=1, scoring=True)
    blueprints = {
        own: blueprint,
        other: replace(blueprint, facts=preflight(teacher.config, other)),
    }
    own_tokens = teacher.identity.tokenizer_sha256 == store.identity.tokenizer_sha256
    rows = _choose_rows(store, keys, num_rows, own_tokens)
    path = scratch / "probe.parquet"
    pq.write_table(rows, path)
    found = {name: _score_with(each, path) for name, each in blueprints.items()}
    return {"engines": [own, other], **_compare(found[own], found[other], rows.num_rows)}


def score_file(block: pa.Table, blueprint: EngineBlueprint, path: str) -> Iterator[pa.Table]:
    """A Ray Data task: start the engine, score the rows of the file at `path`, end the engine."""
    rows = pq.read_table(path).to_pylist()
    logprobs = asyncio.run(_score_rows(blueprint, rows))
    scored = [(row["key"], each) for row, each in zip(rows, logprobs, strict=True) if each is not None]
    columns = [[key for key, _ in scored], [each for _, each in scored]]
    yield pa.table(columns, schema=_LOGPROBS)


def _choose_rows(store: TeacherStore, keys: Set[str], num_rows: int, own_tokens: bool) -> pa.Table:
    """Keys are hashes, so the first of them are a random sample that is the same every time."""
    chosen = frozenset(heapq.nsmallest(2 * num_rows, keys))  # some may be rejects, or have no tokens
    rows = [
        {name: row[name] for name in _ROWS.names}
        for partition in sorted({partition_of(key, store.num_partitions) for key in chosen})
        for row in scorer_rows(store, partition, chosen, own_tokens=own_tokens)
    ]
    if not rows:
        raise DataError(
            "there are no stored completions with token ids to compare engines on",
            where=str(store.path),
            fix="run raystill generate first, or set teacher.signals.probe_rows: 0",
        )
    rows.sort(key=lambda row: row["key"])
    return pa.Table.from_pylist(rows[:num_rows], _ROWS)


def _score_with(blueprint: EngineBlueprint, path: Path) -> dict[str, Float32Array]:
    on_gpu = blueprint.facts.device == "cuda"
    gpus = blueprint.config.teacher.vllm.tensor_parallel_size if on_gpu else 0
    items = [{"engine": blueprint.facts.engine}]
    tables = map_items(items, score_file, num_gpus=gpus, blueprint=blueprint, path=str(path))
    return {
        row["key"]: np.asarray(row["logprobs"], np.float32) for table in tables for row in table.to_pylist()
    }


async def _score_rows(blueprint: EngineBlueprint, rows: list[dict[str, Any]]) -> list[Float32Array | None]:
    engine = build_engine(blueprint)
    try:
        slots = asyncio.Semaphore(engine.rows_in_flight)
        return await asyncio.gather(*(_score_row(engine, row, slots) for row in rows))
    finally:
        engine.shutdown()


async def _score_row(
    engine: TeacherEngine, row: dict[str, Any], slots: asyncio.Semaphore
) -> Float32Array | None:
    """The sampled tokens' logprobs (T), None where the engine can't do the row."""
    request = ScoreRequest(
        key=row["key"],
        prompt_token_ids=np.asarray(row["prompt_token_ids"], np.int32),
        completion_token_ids=np.asarray(row["completion_token_ids"], np.int32),
        num_logprobs=1,
    )
    async with slots:
        try:
            return (await engine.score(request)).sampled_logprob_T
        except EngineRowError:
            return None


def _compare(
    own: Mapping[str, Float32Array], other: Mapping[str, Float32Array], num_rows: int
) -> dict[str, Any]:
    shared = sorted(own.keys() & other.keys())
    if not shared:
        raise DataError(
            "no row could be scored by both engines",
            where="teacher.signals.probe_rows",
            fix="look at the score stage's rejects: rows may be longer than the context",
        )
    differences = np.concatenate([np.abs(own[key] - other[key]) for key in shared]).astype(np.float64)
    return {
        "rows": len(shared),
        "rows_left_out": num_rows - len(shared),
        "tokens": len(differences),
        "mean_abs": float(differences.mean()),
        "p99_abs": float(np.quantile(differences, 0.99)),
        "max_abs": float(differences.max()),
    }

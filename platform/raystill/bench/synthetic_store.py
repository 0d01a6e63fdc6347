"""Stores and request tables of any size through the real writer: small rows, random keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from raystill.store.identity import StoreIdentity, partition_start
from raystill.store.records import TeacherRow
from raystill.store.requests import REQUEST_SCHEMA, RequestTableWriter
from raystill.store.store import TeacherStore, open_store
from raystill.store.writer import PartWriter

_IDENTITY = StoreIdentity(
    teacher="synthetic",
    engine="bench",
    dtype="none",
    tokenizer_sha256="",
    chat_template_sha256="",
    num_logprobs=0,
)
_LOW_BITS = 68


def build_synthetic_store(
    directory: Path, num_rows: int, *, num_partitions: int, rows_per_part: int, num_extra: int
) -> tuple[TeacherStore, Path, Path]:
    """A store of `num_rows` rows and two request tables: of its rows, and of `num_extra` requests more.

    Memory: one part's rows and one partition's keys.
    """
    store = open_store(directory / "store", _IDENTITY, num_partitions)
    tables = directory / "requests.parquet", directory / "more_requests.parquet"
    share, rest = divmod(num_rows, num_partitions)
    more, more_rest = divmod(num_extra, num_partitions)
    with (
        PartWriter(store) as writer,
        RequestTableWriter(tables[0]) as exact,
        RequestTableWriter(tables[1]) as larger,
    ):
        for partition in range(num_partitions):
            stored = share + (partition < rest)
            keys = synthetic_keys(partition, num_partitions, stored + more + (partition < more_rest))
            for start in range(0, stored, rows_per_part):
                chunk = keys[start : min(stored, start + rows_per_part)]
                writer.commit_rows(partition, list(synthetic_rows(chunk)))
            exact.add(_request_table(keys[:stored]))
            larger.add(_request_table(keys))
    return store, *tables


def synthetic_keys(partition: int, num_partitions: int, count: int) -> list[str]:
    """Different random keys of one partition; equal arguments give equal keys."""
    rng = np.random.default_rng(partition)
    first = partition_start(partition, num_partitions)
    span = partition_start(partition + 1, num_partitions) - first
    high = rng.integers(0, span, count, dtype=np.uint64).tolist()
    low = rng.integers(0, 1 << 62, count, dtype=np.uint64).tolist()
    return [f"{((first + a) << _LOW_BITS) + b:032x}" for a, b in zip(high, low, strict=True)]


def synthetic_rows(keys: list[str]) -> Iterator[TeacherRow]:
    """A short answer per key, all of its text from the key."""
    teacher_id = _IDENTITY.teacher_id
    prompt, completion = np.arange(8, dtype=np.int32), np.arange(4, dtype=np.int32)
    for key in keys:
        yield TeacherRow(
            key=key,
            prompt_id=key[:16],
            split="train",
            source="synthetic",
            messages='[{"role": "user", "content": "' + key + '"}]',
            prompt_token_ids=prompt,
            completion="answer " + key[:8],
            completion_token_ids=completion,
            finish_reason="stop",
            flags=(),
            teacher_id=teacher_id,
            sample_index=0,
            seconds=0.1,
            usage='{"prompt_tokens": 8, "completion_tokens": 4}',
            cost_usd=1e-6,
        )


def _request_table(keys: list[str]) -> pa.Table:
    columns = [
        pa.array(keys),
        pa.array([key[:16] for key in keys]),
        pa.repeat("train", len(keys)),
        pa.repeat(pa.scalar(0, pa.int32()), len(keys)),
    ]
    return pa.table(columns, schema=REQUEST_SCHEMA)

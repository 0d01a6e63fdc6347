"""Stores and request tables of any size through the real writer: small rows, random keys.

Parts, commits, checksums and digests are what any run writes; only the tables are made of columns at once
instead of row by row, which is where the time would go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystill.store.codec import rows_to_table
from raystill.store.digest import row_digest
from raystill.store.identity import KEY_LENGTH, StoreIdentity, partition_start
from raystill.store.records import ROW_SCHEMA, TeacherRow
from raystill.store.requests import REQUEST_SCHEMA, RequestTableWriter
from raystill.store.store import TeacherStore, load_store, open_store
from raystill.store.writer import Facts, PartWriter

SYNTHETIC_IDENTITY = StoreIdentity(
    teacher="synthetic",
    engine="bench",
    dtype="none",
    tokenizer_sha256="",
    chat_template_sha256="",
    num_logprobs=0,
)
_LOW_BITS = 68
_COMPLETION_TOKENS = 4
_COST_USD = 1e-6
_MESSAGES = ('[{"role": "user", "content": "', '"}]')


@dataclass(frozen=True)
class SyntheticShape:
    """How large a store is; `num_extra` requests are in the larger table and not in the store."""

    num_rows: int
    num_partitions: int
    rows_per_part: int
    num_extra: int

    def keys(self, partition: int) -> tuple[list[str], int]:
        """A partition's requests, and how many of them, from the first, are stored."""
        stored = _share(self.num_rows, self.num_partitions, partition)
        extra = _share(self.num_extra, self.num_partitions, partition)
        return synthetic_keys(partition, self.num_partitions, stored + extra), stored


def build_synthetic_store(directory: Path, shape: SyntheticShape) -> tuple[TeacherStore, Path, Path]:
    """A store and two request tables: of its rows, and of `num_extra` requests more. Memory: one part's rows
    and one partition's keys."""
    fill_synthetic_store(directory, shape, range(shape.num_partitions))
    return load_store(directory / "store"), *write_request_tables(directory, shape)


def fill_synthetic_store(directory: Path, shape: SyntheticShape, partitions: Iterable[int]) -> None:
    """Write some partitions of the store; several processes may share them."""
    store = open_store(directory / "store", SYNTHETIC_IDENTITY, shape.num_partitions)
    with PartWriter(store) as writer:
        for partition in partitions:
            keys, stored = shape.keys(partition)
            for start in range(0, stored, shape.rows_per_part):
                chunk = keys[start : min(stored, start + shape.rows_per_part)]
                facts = Facts(
                    digest_sum=sum(map(row_digest, synthetic_rows(chunk))),
                    num_tokens=_COMPLETION_TOKENS * len(chunk),
                    cost_usd=_COST_USD * len(chunk),
                )
                writer.commit_table("rows", partition, synthetic_table(chunk), facts)


def write_request_tables(directory: Path, shape: SyntheticShape) -> tuple[Path, Path]:
    """The request tables of a store in `directory`: of its rows, and of more."""
    tables = directory / "requests.parquet", directory / "more_requests.parquet"
    with RequestTableWriter(tables[0]) as exact, RequestTableWriter(tables[1]) as larger:
        for partition in range(shape.num_partitions):
            keys, stored = shape.keys(partition)
            exact.add(_request_table(keys[:stored]))
            larger.add(_request_table(keys))
    return tables


def _share(total: int, num_parts: int, part: int) -> int:
    return total // num_parts + (part < total % num_parts)


def synthetic_keys(partition: int, num_partitions: int, count: int, seed: int = 0) -> list[str]:
    """Different random keys of one partition; equal arguments give equal keys."""
    rng = np.random.default_rng([partition, seed])
    first = partition_start(partition, num_partitions)
    span = partition_start(partition + 1, num_partitions) - first
    high = rng.integers(0, span, count, dtype=np.uint64).tolist()
    low = rng.integers(0, 1 << 62, count, dtype=np.uint64).tolist()
    return [f"{((first + a) << _LOW_BITS) + b:032x}" for a, b in zip(high, low, strict=True)]


def synthetic_rows(keys: list[str]) -> Iterator[TeacherRow]:
    """A short answer per key, all of its text from the key."""
    teacher_id = SYNTHETIC_IDENTITY.teacher_id
    prompt, completion = np.arange(8, dtype=np.int32), np.arange(_COMPLETION_TOKENS, dtype=np.int32)
    for key in keys:
        yield TeacherRow(
            key=key,
            prompt_id=key[:16],
            split="train",
            source="synthetic",
            messages=key.join(_MESSAGES),
            prompt_token_ids=prompt,
            completion="answer " + key[:8],
            completion_token_ids=completion,
            finish_reason="stop",
            flags=(),
            teacher_id=teacher_id,
            sample_index=0,
            seconds=0.1,
            usage='{"prompt_tokens": 8, "completion_tokens": 4}',
            cost_usd=_COST_USD,
        )


def synthetic_table(keys: list[str]) -> pa.Table:
    """The table of `synthetic_rows(keys)`, made of columns."""
    names = pa.array(keys, pa.string())
    table = rows_to_table(list(synthetic_rows(["0" * KEY_LENGTH])))
    table = table.take(pa.array(np.zeros(len(keys), np.int64)))
    columns = {
        "key": names,
        "prompt_id": pc.utf8_slice_codeunits(names, 0, 16),
        "messages": pc.binary_join_element_wise(*_MESSAGES[:1], names, *_MESSAGES[1:], ""),
        "completion": pc.binary_join_element_wise("answer ", pc.utf8_slice_codeunits(names, 0, 8), ""),
    }
    for name, column in columns.items():
        table = table.set_column(ROW_SCHEMA.get_field_index(name), ROW_SCHEMA.field(name), column)
    return table


def _request_table(keys: list[str]) -> pa.Table:
    columns = [
        pa.array(keys),
        pa.array([key[:16] for key in keys]),
        pa.repeat("train", len(keys)),
        pa.repeat(pa.scalar(0, pa.int32()), len(keys)),
    ]
    return pa.table(columns, schema=REQUEST_SCHEMA)

"""Shards: the rows of one task, cut from a partition, on disk where every worker reads them.

A shard becomes one part of the store. Only its descriptor goes through Ray; its rows are one row group of a
Parquet file in a scratch directory, so a plan of any length costs no object store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.store.layout import partition_name
from raystill.teacher.row_work import WORK_SCHEMAS

_BUFFERED_ROWS = 2048
# Enough tasks per engine to spread a small job and to lose little with one.
_TASKS_PER_ENGINE = 8


@dataclass(frozen=True)
class Shard:
    """Row group `row_group` of the file at `path`: `num_rows` rows of one partition.

    `in_tail` marks the last shards of a job, whose rows are done longest first.
    """

    path: str
    partition: int
    row_group: int
    num_rows: int
    in_tail: bool = False

    def read(self) -> list[dict[str, Any]]:
        """The rows."""
        with pq.ParquetFile(self.path) as file:
            rows: list[dict[str, Any]] = file.read_row_group(self.row_group, use_threads=False).to_pylist()
            return rows


class ShardWriter:
    """Collects rows by partition in a scratch directory, then cuts them into shards.

    Memory: one buffer per partition while adding, one partition while cutting.
    """

    def __init__(self, directory: Path, kind: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory.resolve()
        self._schema = WORK_SCHEMAS[kind]
        self._buffers: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._files: dict[int, list[Path]] = defaultdict(list)

    def add(self, partition: int, row: dict[str, Any]) -> None:
        """Add a row; its columns are those of `WORK_SCHEMAS`."""
        buffer = self._buffers[partition]
        buffer.append(row)
        if len(buffer) >= _BUFFERED_ROWS:
            self._flush(partition)

    def iter_partitions(self) -> Iterator[tuple[int, pa.Table]]:
        """All rows of each partition, equal keys once, the first of them."""
        for partition in sorted(self._buffers):
            self._flush(partition)
            tables = [pq.read_table(path) for path in self._files[partition]]
            yield partition, _distinct(pa.concat_tables(tables))

    def cut(self, partition: int, table: pa.Table, rows_per_shard: int) -> list[Shard]:
        """Write the rows of `table` as shards of one partition."""
        if table.num_rows == 0:
            return []
        path = self._directory / f"{partition_name(partition)}.parquet"
        pq.write_table(table, path, row_group_size=rows_per_shard, compression="zstd")
        return [
            Shard(str(path), partition, group, min(rows_per_shard, table.num_rows - group * rows_per_shard))
            for group in range(-(-table.num_rows // rows_per_shard))
        ]

    def _flush(self, partition: int) -> None:
        buffer = self._buffers[partition]
        if not buffer:
            return
        number = len(self._files[partition])
        path = self._directory / f"{partition_name(partition)}-{number:06d}.parquet"
        pq.write_table(pa.Table.from_pylist(buffer, schema=self._schema), path, compression="zstd")
        self._files[partition].append(path)
        buffer.clear()


def shard_rows(rows_per_part: int, num_rows: int, num_engines: int) -> int:
    """Rows per shard: a full part, or fewer where a job is so small that engines would idle."""
    return max(1, min(rows_per_part, -(-num_rows // (_TASKS_PER_ENGINE * num_engines))))


def shards_to_table(shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """Descriptors as the rows of a Ray dataset."""
    return [vars(shard) for shard in shards]


def shards_from_table(table: pa.Table) -> list[Shard]:
    """The inverse of `shards_to_table`, of one block."""
    return [Shard(**row) for row in table.to_pylist()]


def _distinct(table: pa.Table) -> pa.Table:
    numbered = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    first = numbered.group_by("key").aggregate([("row", "min")]).column("row_min").combine_chunks()
    return table if len(first) == table.num_rows else table.take(first.sort())

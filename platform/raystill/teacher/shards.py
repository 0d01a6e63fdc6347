"""Shards: the rows of one task, cut from a partition, on disk where every worker reads them.

A shard becomes one part of the store. Only its descriptor goes through Ray; its rows are one row group of a
Parquet file in a scratch directory, so a plan of any length costs no object store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.store.layout import partition_name
from raystill.teacher.row_work import WORK_SCHEMAS
from raystill.teacher.spill import PartitionSpill

_BUFFERED_ROWS = 1024
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
        rows: list[dict[str, Any]] = self.table().to_pylist()
        return rows

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns of the rows, or all."""
        names = None if columns is None else list(columns)
        with pq.ParquetFile(self.path) as file:
            return file.read_row_group(self.row_group, columns=names, use_threads=False)


class ShardWriter:
    """Collects rows by partition in a scratch directory, then cuts them into shards.

    Memory: a buffer while adding, one partition or a range of its keys while cutting.
    """

    def __init__(self, directory: Path, kind: str, num_partitions: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory.resolve()
        self._schema = WORK_SCHEMAS[kind]
        self._spill = PartitionSpill(self._directory / "spilled", self._schema, num_partitions)
        self._buffer: list[dict[str, Any]] = []
        self._files = 0

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; its columns are those of `WORK_SCHEMAS`."""
        self._buffer.append(row)
        if len(self._buffer) >= _BUFFERED_ROWS:
            self._flush()

    def iter_partitions(self) -> Iterator[tuple[int, pa.Table]]:
        """All rows of each partition, see `PartitionSpill.iter_partitions`."""
        self._flush()
        yield from self._spill.iter_partitions()

    def cut(self, partition: int, table: pa.Table, rows_per_shard: int) -> list[Shard]:
        """Write the rows of `table` as shards of one partition."""
        if table.num_rows == 0:
            return []
        self._files += 1
        path = self._directory / f"{partition_name(partition)}-{self._files:06d}.parquet"
        pq.write_table(table, path, row_group_size=rows_per_shard, compression="zstd")
        return [
            Shard(str(path), partition, group, min(rows_per_shard, table.num_rows - group * rows_per_shard))
            for group in range(-(-table.num_rows // rows_per_shard))
        ]

    def _flush(self) -> None:
        if self._buffer:
            self._spill.add(pa.Table.from_pylist(self._buffer, schema=self._schema))
            self._buffer = []


def shard_rows(rows_per_part: int, num_rows: int, num_engines: int) -> int:
    """Rows per shard: a full part, or fewer where a job is so small that engines would idle."""
    return max(1, min(rows_per_part, -(-num_rows // (_TASKS_PER_ENGINE * num_engines))))


def shards_to_table(shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """Descriptors as the rows of a Ray dataset."""
    return [vars(shard) for shard in shards]


def shards_from_table(table: pa.Table) -> list[Shard]:
    """The inverse of `shards_to_table`, of one block."""
    return [Shard(**row) for row in table.to_pylist()]

"""Rows on their way into partitions: kept in columns, spilled to disk, read back a range of keys at a time.

What a plan of millions of requests holds in memory is one buffer and one range, whatever comes in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from raystill.store.identity import partition_start
from raystill.store.keys import BoolArray, Keys, first_occurrences, pack_column

_BUFFER_BYTES = 24 << 20
# A partition is read whole where it is small, or else in up to so many ranges of its keys.
_RANGES = 8
_RANGE_BYTES = 32 << 20


class PartitionSpill:
    """Takes tables with a column `key` in any order; gives them back by partition.

    Of equal keys the row with the smallest `rank` is kept, which names a column; without, the first to come.
    With `keeps_equal` all are.
    """

    def __init__(
        self,
        directory: Path,
        schema: pa.Schema,
        num_partitions: int,
        rank: str | None = None,
        *,
        keeps_equal: bool = False,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._schema = schema
        self._rank = rank
        self._keeps_equal = keeps_equal
        count = num_partitions * _RANGES
        # Nothing is below the first start, so it is left out: the search then gives the range's number.
        starts = [partition_start(number, count) << 4 for number in range(1, count)]
        self._starts = np.array(starts, np.uint64)
        self._buffer: list[pa.Table] = []
        self._buffered_bytes = 0
        self._runs: list[Path] = []
        # Range -> (run, batch in it, bytes before compression), in the order in which rows came.
        self._places: dict[int, list[tuple[int, int, int]]] = defaultdict(list)

    def add(self, table: pa.Table) -> None:
        """Take some rows; their columns are the schema's."""
        self._buffer.append(table)
        self._buffered_bytes += table.nbytes
        if self._buffered_bytes >= _BUFFER_BYTES:
            self._flush()

    def iter_partitions(self) -> Iterator[tuple[int, pa.Table]]:
        """Each partition's rows in ascending ranges of keys, equal keys side by side or once.

        A partition that is small comes as one table, a large one as several in a row.
        """
        self._flush()
        # Not mapped: what a process has mapped and read counts as its memory until somebody else wants it.
        files = [pa.ipc.open_file(pa.OSFile(str(run))) for run in self._runs]
        partitions: dict[int, list[int]] = defaultdict(list)
        for number in sorted(self._places):
            partitions[number // _RANGES].append(number)
        for partition, numbers in partitions.items():
            for group in self._fitting(numbers):
                places = sorted(place for number in group for place in self._places[number])
                batches = [files[run].get_batch(batch) for run, batch, _ in places]
                rows = pa.Table.from_batches(batches, self._schema)
                yield partition, rows if self._keeps_equal else _distinct(rows, self._rank)

    def _fitting(self, numbers: list[int]) -> Iterator[list[int]]:
        """Neighbouring ranges together, as long as they are small."""
        group: list[int] = []
        size = 0
        for number in numbers:
            more = sum(num_bytes for *_, num_bytes in self._places[number])
            if group and size + more > _RANGE_BYTES:
                yield group
                group, size = [], 0
            group.append(number)
            size += more
        yield group

    def _flush(self) -> None:
        if not self._buffer:
            return
        table = pa.concat_tables(self._buffer).combine_chunks()
        self._buffer, self._buffered_bytes = [], 0
        high = Keys.from_packed(pack_column(table.column("key"))).high_N
        numbers = np.searchsorted(self._starts, high, side="right")
        order = np.argsort(numbers, kind="stable")
        found, starts, counts = np.unique(numbers[order], return_index=True, return_counts=True)
        run = self._directory / f"run-{len(self._runs):06d}.arrow"
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with pa.ipc.new_file(str(run), self._schema, options=options) as writer:
            for index, (number, start, count) in enumerate(zip(found, starts, counts, strict=True)):
                part = table.take(pa.array(order[start : start + count])).combine_chunks()
                (batch,) = part.to_batches()
                writer.write_batch(batch)
                self._places[int(number)].append((len(self._runs), index, batch.nbytes))
        self._runs.append(run)


def _distinct(table: pa.Table, rank: str | None) -> pa.Table:
    first = _first_rows(table)
    if first.all():
        return table
    if rank is not None:
        table = table.sort_by(rank)
        first = _first_rows(table)
    return table.filter(pa.array(first))


def _first_rows(table: pa.Table) -> BoolArray:
    return first_occurrences(Keys.from_packed(pack_column(table.column("key"))))

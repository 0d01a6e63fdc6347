"""Which requests of a run are still to be asked: the request table against the store, a partition at a time.

Both are sorted or cut by key, so memory is one partition's keys (16 bytes each) and one row group of the
table, whatever the number of rows, and no row becomes a Python object.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.store.keys import Keys, KeySet, pack_column
from raystill.store.layout import Kind
from raystill.store.reader import iter_tables
from raystill.store.rejects import Answered, load_answered
from raystill.store.requests import REQUEST_SCHEMA
from raystill.store.store import TeacherStore


@dataclass(frozen=True)
class Census:
    """What became of a run's requests so far."""

    requests: int
    stored: int
    rejected: int

    @property
    def pending(self) -> int:
        """Requests with neither an answer nor a reject."""
        return self.requests - self.stored - self.rejected


@dataclass(frozen=True)
class _Slice:
    """Requests of one partition, rows `start` to `end` of row group `group`; flags say what each one is."""

    partition: int
    group: int
    start: int
    is_stored: pa.Array
    is_rejected: pa.Array


def count_requests(store: TeacherStore, requests: Path) -> Census:
    """Count requests by what became of them; an answer beats a reject. Raises like `iter_pending`."""
    total = stored = rejected = 0
    for part in _iter_slices(store, requests):
        total += len(part.is_stored)
        stored += part.is_stored.true_count
        rejected += part.is_rejected.true_count
    return Census(total, stored, rejected)


def iter_pending(store: TeacherStore, requests: Path) -> Iterator[tuple[int, pa.Table]]:
    """The requests that are still to be asked: a partition and rows of REQUEST_SCHEMA, partitions ascending.

    Raises DataError where the table can't be read or isn't sorted by key, or a committed part is missing.
    """
    with pq.ParquetFile(requests) as file:
        for part in _iter_slices(store, requests):
            pending = pc.invert(pc.or_(part.is_stored, part.is_rejected))
            if pending.true_count:
                rows = file.read_row_group(part.group, use_threads=False)
                yield part.partition, rows.slice(part.start, len(pending)).filter(pending)


def iter_requested_keys(requests: Path, num_partitions: int) -> Iterator[tuple[int, Keys]]:
    """The keys of a run by partition, ascending; a partition's keys in memory. Raises like `iter_pending`."""
    current, found = 0, [Keys.from_packed()]
    for partition, _, _, keys in _iter_keys(requests, num_partitions):
        if partition != current:
            yield current, Keys.join(found)
            current, found = partition, []
        found.append(keys)
    yield current, Keys.join(found)


def iter_requested(
    store: TeacherStore, requests: Path, columns: Collection[str], kind: Kind = "rows"
) -> Iterator[pa.Table]:
    """What the store holds of a run: tables of `columns` in the order of `iter_tables`.

    Memory: one part, and the keys of a partition. Raises like `iter_tables` and `iter_pending`.
    """
    for partition, keys in iter_requested_keys(requests, store.num_partitions):
        if len(keys):
            wanted = KeySet(keys)
            needed = columns if "key" in columns else [*columns, "key"]
            for table in iter_tables(store, kind=kind, columns=needed, partitions=(partition,)):
                own = wanted.contains(Keys.from_packed(pack_column(table.column("key"))))
                if own.any():
                    yield table.filter(pa.array(own)).select(list(columns))


def _iter_slices(store: TeacherStore, requests: Path) -> Iterator[_Slice]:
    answered: tuple[int, Answered] | None = None
    for partition, group, start, keys in _iter_keys(requests, store.num_partitions):
        if answered is None or answered[0] != partition:
            answered = partition, load_answered(store, partition)
        is_stored = answered[1].stored.contains(keys)
        is_rejected = answered[1].rejected.contains(keys) & ~is_stored
        yield _Slice(partition, group, start, pa.array(is_stored), pa.array(is_rejected))


def _iter_keys(requests: Path, num_partitions: int) -> Iterator[tuple[int, int, int, Keys]]:
    """Partition, row group, first row and keys of every run of rows of one partition in one row group."""
    last_high = 0
    try:
        file = pq.ParquetFile(requests)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(requests) from error
    with file:
        if not set(REQUEST_SCHEMA.names) <= set(file.schema_arrow.names):
            raise _unreadable(requests)
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, columns=["key"], use_threads=False).column("key")
            keys = Keys.from_packed(pack_column(column))
            if not keys.is_sorted() or (len(keys) and int(keys.high_N[0]) < last_high):
                raise _unreadable(requests)
            last_high = int(keys.high_N[-1]) if len(keys) else last_high
            edges = keys.partition_edges(num_partitions)
            for partition in range(num_partitions):
                start, end = edges[partition], edges[partition + 1]
                if start < end:
                    yield partition, group, start, keys.take(slice(start, end))


def _unreadable(path: Path) -> DataError:
    return DataError(
        "the run's list of requests can't be read", where=str(path), fix="raystill generate --fresh"
    )

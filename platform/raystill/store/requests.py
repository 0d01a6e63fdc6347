"""Which rows of a store belong to a run: the requests that its generate stage made, and their split.

A store outlives runs and may hold other splits, seeds and sampling settings than this run's. A stage that
reads the store therefore takes the keys that this table lists, never "all rows": a prompt that another run
trained on may be held out here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.run.publish import publish_file

_ROW_GROUP = 1 << 18
REQUEST_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Request:
    """One request of a run: its key in the store, the prompt, the side of this run's split, the sample."""

    key: str
    prompt_id: str
    split: str
    sample_index: int = 0


def save_requests(path: Path, requests: Iterable[Request]) -> None:
    """Publish a run's requests, sorted by key so that equal runs give equal bytes."""
    with RequestTableWriter(path) as writer:
        writer.add(pa.Table.from_pylist([vars(request) for request in requests], REQUEST_SCHEMA))


class RequestTableWriter:
    """Publishes a request table piece by piece: memory is one piece, whatever the number of requests.

    A context manager; nothing is published where the body fails. Pieces are ranges of keys in ascending
    order, as partitions are; each is sorted here. `schema` is REQUEST_SCHEMA, or that with more columns.
    """

    def __init__(self, path: Path, schema: pa.Schema = REQUEST_SCHEMA) -> None:
        self._path = path
        self._schema = schema
        self._stack = ExitStack()
        self._last_key = ""

    def __enter__(self) -> RequestTableWriter:
        temporary = self._stack.enter_context(publish_file(self._path))
        # Keys are random, so a dictionary of them would only cost.
        self._writer = self._stack.enter_context(
            pq.ParquetWriter(temporary, self._schema, compression="zstd", use_dictionary=["split"])
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, table: pa.Table) -> None:
        """Append requests. Raises ValueError where their keys don't follow those before."""
        if table.num_rows == 0:
            return
        table = table.sort_by("key")
        first, last = table.column("key")[0].as_py(), table.column("key")[-1].as_py()
        if first < self._last_key:
            raise ValueError(f"request {first} comes after {self._last_key}")
        self._last_key = last
        self._writer.write_table(table, row_group_size=_ROW_GROUP)

    def note(self, name: str, value: str) -> None:
        """Keep `value` with the table, where `request_note` finds it."""
        self._writer.add_key_value_metadata({name: value})


def request_note(path: Path, name: str) -> str | None:
    """What `RequestTableWriter.note` kept; None where there is no table that can be read, or no note."""
    try:
        facts = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    value = facts.get(name.encode())
    return None if value is None else value.decode()


def copy_requests(source: Path, path: Path) -> None:
    """Publish the requests of `source`, whatever else its table holds. Raises DataError for a bad table."""
    with RequestTableWriter(path) as writer:
        for table in iter_request_tables(source):
            writer.add(table)


def iter_request_tables(
    path: Path, columns: Sequence[str] = tuple(REQUEST_SCHEMA.names)
) -> Iterator[pa.Table]:
    """A run's requests in ascending order of keys, in pieces. Raises DataError if the table can't be read."""
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path) from error


def load_requests(path: Path) -> list[Request]:
    """A run's requests, sorted by key. Raises DataError if the table can't be read."""
    return [Request(**row) for row in _read_table(path).to_pylist()]


def load_request_keys(path: Path, split: str | None = None) -> frozenset[str]:
    """Keys of a run's requests, of one split or of all. Raises DataError if the table can't be read."""
    table = _read_table(path)
    rows = zip(table.column("key").to_pylist(), table.column("split").to_pylist(), strict=True)
    return frozenset(key for key, side in rows if split is None or side == split)


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=REQUEST_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> DataError:
    return DataError(
        "the run's list of requests can't be read", where=str(path), fix="raystill generate --fresh"
    )

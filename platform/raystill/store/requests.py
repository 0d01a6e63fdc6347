"""Which rows of a store belong to a run: the requests that its generate stage made, and their split.

A store outlives runs and may hold other splits, seeds and sampling settings than this run's. A stage that
reads the store therefore takes the keys that this table lists, never "all rows": a prompt that another run
trained on may be held out here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
    rows = [vars(request) for request in sorted(requests, key=lambda request: request.key)]
    with publish_file(path) as temporary:
        write_request_table(pa.Table.from_pylist(rows, REQUEST_SCHEMA), temporary)


def write_request_table(table: pa.Table, path: Path) -> None:
    """Write requests that are sorted by key, in row groups that a scan can hold one at a time."""
    pq.write_table(table, path, compression="zstd", row_group_size=_ROW_GROUP, use_dictionary=["split"])


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
        raise DataError(
            "the run's list of requests can't be read", where=str(path), fix="raystill generate --fresh"
        ) from error

"""Reading foreign files row by row: a broken row never hides the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.store.importers.answer import BadAnswer, ImportedAnswer, RowError, place

MAX_LINE_BYTES = 256 * 2**20
_BATCH_ROWS = 64
_EXCERPT = 2000
Record = dict[str, Any]
ReadRecord = Callable[[Record, str], Iterator[ImportedAnswer | BadAnswer]]


def iter_answers(paths: Sequence[Path], read: ReadRecord) -> Iterator[ImportedAnswer | BadAnswer]:
    """Every row of JSONL or Parquet files through `read`, which may raise RowError for its row.

    Raises DataError for a file that is missing or isn't what its name says.
    """
    for path in paths:
        rows = iter_parquet(path) if path.suffix == ".parquet" else iter_jsonl(path)
        for where, record in rows:
            if isinstance(record, BadAnswer):
                yield record
                continue
            try:
                yield from read(record, where)
            except RowError as error:
                yield BadAnswer(where, error.code, error.reason, excerpt(record))


def iter_jsonl(path: Path) -> Iterator[tuple[str, Record | BadAnswer]]:
    """(`file:line`, object) of every line that isn't blank. Raises DataError for a missing file."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error
    with stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if line.strip():
                yield place(path, number), _read_line(line, place(path, number))


def iter_parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Record]]:
    """(`file[row]`, record) of a Parquet file, a few rows in memory at a time. Raises DataError."""
    number = 0
    for table in iter_parquet_batches(path, columns):
        for record in table.to_pylist():
            yield f"{path.name}[{number}]", record
            number += 1


def iter_parquet_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of a Parquet file. Raises DataError where it can't be read or lacks a column."""
    try:
        with pq.ParquetFile(path) as part:
            missing = [name for name in columns or () if name not in part.schema_arrow.names]
            if missing:
                raise DataError(
                    f"the file has no column {missing[0]!r}, only {', '.join(part.schema_arrow.names)}",
                    where=str(path),
                    fix="name the format that the file has",
                )
            yield from part.iter_batches(batch_size=_BATCH_ROWS, columns=columns and list(columns))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, str(error).splitlines()[0]) from error


def excerpt(record: Any) -> str:
    """What a bad row holds, as far as its reject needs it; equal rows give equal text."""
    return json.dumps(record, sort_keys=True, ensure_ascii=True, default=repr)[:_EXCERPT]


def _read_line(line: bytes, where: str) -> Record | BadAnswer:
    content = line[:_EXCERPT].decode("utf-8", "backslashreplace")
    if len(line) > MAX_LINE_BYTES:
        return BadAnswer(where, "too_long", f"the line is longer than {MAX_LINE_BYTES:,} bytes", content)
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return BadAnswer(where, "not_json", f"the line is not JSON: {error}", content)
    if not isinstance(record, dict):
        return BadAnswer(where, "not_an_object", "the line is not a JSON object", content)
    return record


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"the file can't be read: {why}", where=str(path), fix="check the path, and that it is whole"
    )

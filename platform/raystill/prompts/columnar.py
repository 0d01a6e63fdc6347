"""Parquet, CSV and Arrow stream files: rows with named columns."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.prompts.rows import BadRow, RawRow, excerpt_of

_BATCH_ROWS = 1024


def iter_parquet(path: Path) -> Iterator[RawRow | BadRow]:
    """Rows of a Parquet file. Raises DataError if it isn't one, or is cut short."""
    try:
        with pq.ParquetFile(path) as table:
            offset = 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                yield from iter_batch(batch, str(path), offset)
                offset += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable("Parquet", path, error) from error


def iter_arrow_stream(path: Path, offset: int = 0) -> Iterator[RawRow | BadRow]:
    """Rows of an Arrow stream file, as HF `save_to_disk` writes them. Raises DataError if it isn't one."""
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                yield from iter_batch(batch, str(path), offset)
                offset += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable("Arrow", path, error) from error


def iter_batch(batch: pa.RecordBatch, name: str, offset: int) -> Iterator[RawRow | BadRow]:
    """Rows of a batch; where a string isn't UTF-8 only its own row is bad."""
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            yield _row_alone(batch.slice(index, 1), f"{name}[{offset + index}]")
        return
    for index, value in enumerate(values):
        yield RawRow(f"{name}[{offset + index}]", value)


def _row_alone(batch: pa.RecordBatch, where: str) -> RawRow | BadRow:
    try:
        return RawRow(where, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        return BadRow(where, "utf8", f"not UTF-8 (byte {error.start + 1})", excerpt_of(error.object))


def iter_csv(path: Path) -> Iterator[RawRow | BadRow]:
    """Rows of a CSV file (tab-separated if it ends in .tsv) whose first line names the columns.

    Raises DataError if there is no header, or if it names a column twice.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            raise DataError(f"the header is not CSV: {error}", where=f"{path}:1") from error
        if not header or len(set(header)) < len(header):
            raise DataError(
                "the first line must name every column once",
                where=f"{path}:1",
                fix="add a header line such as: id,prompt",
            )
        yield from _iter_records(reader, header, path)


def _iter_records(reader: Any, header: list[str], path: Path) -> Iterator[RawRow | BadRow]:
    while True:
        line = reader.line_num + 1
        where = f"{path}:{line}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield BadRow(where, "csv", f"not CSV: {error}", "")
            continue
        if fields is None:
            return
        if not fields:
            continue
        shown = excerpt_of(",".join(fields))
        if len(fields) != len(header):
            yield BadRow(where, "csv", f"{len(fields)} fields under {len(header)} columns", shown)
        elif any("\udc80" <= character <= "\udcff" for field in fields for character in field):
            yield BadRow(where, "utf8", "not UTF-8", shown)
        else:
            yield RawRow(where, dict(zip(header, fields, strict=True)))


def _unreadable(kind: str, path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"the {kind} file can't be read: {reason}", where=str(path), fix="write or download the file again"
    )

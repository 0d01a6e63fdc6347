"""What this store has asked for in batches, on disk before anything is waited for.

<store>/batches/
  <name>.json            the record: how far the batch has got
  <name>.rows.parquet    the rows that it holds, so that results of any later day find theirs
  <name>.jsonl           the requests as they are uploaded; removed once the batch is settled
  book.lock              held by the run that looks after the batches

A batch goes planned -> uploaded -> created -> ended -> settled, and its record is published after each step.
Settled means: every row of it is stored, rejected, or part of a later batch.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from raystill.errors import EnvironmentFault
from raystill.run.failpoint import failpoint
from raystill.run.publish import make_directory, publish_file, write_json
from raystill.teacher.batch_api.record import BatchRecord, load_records, unreadable_record
from raystill.teacher.row_work import WORK_SCHEMAS, Row


class BatchBook:
    """The records of one store. Use it inside `hold`, which keeps other runs out."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Look after the batches alone. Raises EnvironmentFault where another process does."""
        make_directory(self._directory)
        lock = FileLock(self._directory / "book.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise EnvironmentFault(
                "another run is waiting for this store's batches",
                where=str(self._directory),
                fix="let it finish, or end it and run again: batches go on at the provider meanwhile",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def load(self) -> list[BatchRecord]:
        """All records, oldest first. Raises DataError for one that can't be read."""
        return load_records(self._directory)

    def add(
        self, rows: list[Row], lines: Iterable[bytes], attempts: dict[str, int], reserved_usd: float
    ) -> BatchRecord:
        """Write down a new batch: its rows and requests first, its record last."""
        name = f"batch-{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(6)}"
        record = BatchRecord(
            name=name,
            state="planned",
            keys=tuple(row["key"] for row in rows),
            created_at=round(time.time(), 3),
            attempts=attempts,
            reserved_usd=reserved_usd,
        )
        make_directory(self._directory)
        with publish_file(self._rows_path(record)) as temporary:
            pq.write_table(
                pa.Table.from_pylist(rows, WORK_SCHEMAS["generate"]), temporary, compression="zstd"
            )
        with publish_file(self.requests_path(record)) as temporary, temporary.open("wb") as stream:
            stream.writelines(lines)
        failpoint("batch:before_planned")
        self.save(record)
        return record

    def save(self, record: BatchRecord, **changes: Any) -> BatchRecord:
        """Publish a record with `changes`; returns it."""
        changed = replace(record, **changes)
        write_json(self._directory / f"{record.name}.json", asdict(changed))
        return changed

    def settle(self, record: BatchRecord, cost_usd: float) -> BatchRecord:
        """Nothing is left to do for this batch; its requests are no longer needed."""
        settled = self.save(record, state="settled", cost_usd=round(cost_usd, 12))
        for path in (self.requests_path(record), self._rows_path(record), *self.result_paths(record)):
            path.unlink(missing_ok=True)
        return settled

    def discard(self, record: BatchRecord) -> None:
        """Forget a batch that was never created. The record goes first: without it the files mean nothing."""
        (self._directory / f"{record.name}.json").unlink(missing_ok=True)
        self.requests_path(record).unlink(missing_ok=True)
        self._rows_path(record).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove rows and requests whose record was never written, or is settled."""
        live = {record.name for record in self.load() if record.state != "settled"}
        for path in self._directory.glob("batch-*"):
            if path.suffix != ".json" and path.name.partition(".")[0] not in live:
                path.unlink(missing_ok=True)

    def rows(self, record: BatchRecord) -> list[Row]:
        """The rows of a batch that isn't settled. Raises DataError where they can't be read."""
        path = self._rows_path(record)
        try:
            rows: list[Row] = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise unreadable_record(path) from error
        return rows

    def requests_path(self, record: BatchRecord) -> Path:
        """The file to upload."""
        return self._directory / f"{record.name}.jsonl"

    def result_paths(self, record: BatchRecord) -> list[Path]:
        """Where its result files are downloaded to: answers, then errors, as far as it has them."""
        kinds = {"output": record.output_file_id, "error": record.error_file_id}
        return [self._directory / f"{record.name}.{kind}.jsonl" for kind, file_id in kinds.items() if file_id]

    def _rows_path(self, record: BatchRecord) -> Path:
        return self._directory / f"{record.name}.rows.parquet"

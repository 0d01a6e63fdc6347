"""The journal: answers of APIs are durable within a quarter of a second, long before a part is full of them.

A writer appends to a segment of its own. One thread groups what arrives (64 rows or 250 ms), writes the group
and flushes it once; only then is an answer called durable. A full segment is sealed and turned into parts by
a second thread, and deleted once they verify. `raystill.store.recover` does the same for writers that died.
Readers never look here.

On object storage a group is an object, so groups are larger there, and the journal is as safe as the parts.
"""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from raystill.errors import DataError, EnvironmentFault, RaystillError, RemoteError
from raystill.run.disk import require_space
from raystill.run.failpoint import failpoint
from raystill.run.publish import make_directory
from raystill.run.remote import is_remote
from raystill.store.compact import compact_segment
from raystill.store.identity import partition_of
from raystill.store.journal_record import encode_group, encode_record
from raystill.store.journal_segment import Segment, open_segment
from raystill.store.records import Reject, TeacherRow
from raystill.store.selfcheck import check_rows
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter

_RETRY_SECONDS = 0.5
_GROUP_ROWS, _GROUP_SECONDS = 64, 0.25
# A request to object storage takes tens of milliseconds and is paid for.
_REMOTE_GROUP_ROWS, _REMOTE_GROUP_SECONDS = 256, 1.0
# Appended rows that wait for the flush: enough for 16 groups, so memory is bounded and a slow disk is felt.
_WAITING_GROUPS = 16


class _Waiting:
    """An encoded answer on its way to the disk."""

    def __init__(self, key: str, frame: bytes) -> None:
        self.key = key
        self.frame = frame
        self.durable: Future[None] = Future()


class JournalWriter:
    """Makes single answers durable as they arrive. One per process; close it, or use it as a context manager.

    `group_rows` and `group_seconds` bound what a crash can lose; `segment_bytes` bounds memory while a
    segment becomes parts; a full disk, or object storage that refuses, is waited for `full_disk_seconds`, in
    which `append` blocks. Full means that a group and the parts that its segment becomes would not fit.
    """

    def __init__(
        self,
        store: TeacherStore,
        *,
        group_rows: int | None = None,
        group_seconds: float | None = None,
        segment_bytes: int = 16 << 20,
        full_disk_seconds: float = 60.0,
    ) -> None:
        self._store = store
        remote = self._is_remote = is_remote(store.path)
        self._group_rows = group_rows or (_REMOTE_GROUP_ROWS if remote else _GROUP_ROWS)
        self._group_seconds = group_seconds or (_REMOTE_GROUP_SECONDS if remote else _GROUP_SECONDS)
        self._segment_bytes, self._full_disk_seconds = segment_bytes, full_disk_seconds
        self._parts = PartWriter(store)
        make_directory(store.layout.journals)
        self._queue: queue.Queue[_Waiting | Future[None] | None] = queue.Queue(
            _WAITING_GROUPS * self._group_rows
        )
        self._compactor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal-compact")
        self._compactions: list[Future[None]] = []
        self._segment: Segment | None = None
        self._fault: RaystillError | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def append(self, partition: int, record: TeacherRow | Reject) -> Future[None]:
        """Take one answer; the future is done when it is on the disk, and fails where it can't get there.

        Blocks while the disk is behind. Raises DataError, before anything is written, for a signal that
        contradicts its row, a key of another partition and text that is not valid Unicode; EnvironmentFault
        after the disk has failed.
        """
        if self._is_closed:
            raise RuntimeError("the journal is closed")
        if self._fault is not None:
            raise self._fault
        if partition_of(record.key, self._store.num_partitions) != partition:
            raise DataError(f"a key does not belong to partition {partition}", where=f"key {record.key}")
        if isinstance(record, TeacherRow):
            check_rows([record])
        waiting = _Waiting(record.key, encode_record(record))
        self._queue.put(waiting)
        return waiting.durable

    def flush(self) -> None:
        """Return when everything that was appended is durable. Raises EnvironmentFault where it can't be."""
        done: Future[None] = Future()
        self._queue.put(done)
        done.result()

    def close(self) -> None:
        """Make everything durable, turn it into parts, give up the writer's name.

        Raises EnvironmentFault where the disk failed: what was durable stays in the journal for recovery.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._queue.put(None)
        self._thread.join()
        self._compactor.shutdown(wait=True)
        self._parts.close()
        self._note_compactions()
        if self._fault is not None:
            raise self._fault

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._write_groups()
        finally:  # whatever ended this thread, nobody may wait for it for ever
            self._fault = self._fault or self._stopped()
            while not self._queue.empty():
                left = self._queue.get_nowait()
                if left is not None:
                    _settle(left if isinstance(left, Future) else left.durable, self._fault)

    def _stopped(self) -> RaystillError | None:
        return None if self._is_closed else EnvironmentFault("the journal has stopped", str(self._store.path))

    def _write_groups(self) -> None:
        is_open = True
        while is_open:
            group, tokens, is_open = self._next_group()
            error = self._save(group) if group else self._fault
            for waiting in group:
                _settle(waiting.durable, error)
            for token in tokens:
                _settle(token, error)
            if self._segment is not None and self._segment.size >= self._segment_bytes:
                self._seal()
        self._seal()

    def _next_group(self) -> tuple[list[_Waiting], list[Future[None]], bool]:
        """Answers to flush together, flushes that wait for them, and whether more may come."""
        group: list[_Waiting] = []
        deadline: float | None = None
        while len(group) < self._group_rows:
            try:
                item = self._queue.get(timeout=deadline and max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if item is None:
                return group, [], False
            if isinstance(item, Future):
                return group, [item], True
            group.append(item)
            deadline = deadline or time.monotonic() + self._group_seconds
        return group, [], True

    def _save(self, group: Sequence[_Waiting]) -> RaystillError | None:
        """Write and flush one group; waits for a full disk. Returns why it failed, if it did."""
        give_up = time.monotonic() + self._full_disk_seconds
        raw = b"".join(waiting.frame for waiting in group) + encode_group([each.key for each in group])
        while self._fault is None:
            try:
                self._write(raw)
                return None
            except (EnvironmentFault, RemoteError) as fault:
                if not _may_pass(fault) or time.monotonic() > give_up:
                    self._fault = fault
                else:
                    time.sleep(_RETRY_SECONDS)
        return self._fault

    def _write(self, raw: bytes) -> None:
        written = self._segment.size if self._segment is not None else 0
        if not self._is_remote:
            require_space(self._store.layout.journals, 2 * len(raw) + written)
        if self._segment is None:
            self._segment = open_segment(self._store, self._parts.next_stem())
        self._segment.append(raw)

    def _seal(self) -> None:
        """Hand the segment to the compactor; at most two wait, so a slow one slows the intake."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        segment.close()
        failpoint("journal:sealed")
        while sum(not done.done() for done in self._compactions) > 1:
            next(done for done in self._compactions if not done.done()).exception()
        self._note_compactions()
        self._compactions.append(self._compactor.submit(self._compact, segment.path))

    def _compact(self, path: Path) -> None:
        compact_segment(self._store, self._parts, path)

    def _note_compactions(self) -> None:
        for done in [each for each in self._compactions if each.done()]:
            self._compactions.remove(done)
            error = done.exception()
            if isinstance(error, RaystillError):
                self._fault = self._fault or error
            elif error is not None:
                raise error


def _may_pass(fault: RaystillError) -> bool:
    """Whether waiting may help: a full disk, and object storage out of reach."""
    if isinstance(fault, RemoteError):
        return True
    cause = fault.__cause__
    return isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}


def _settle(future: Future[None], error: RaystillError | None) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)

"""Writing parts. Any number of writers may work on one store at once, in any processes, uncoordinated.

Order per part: check, temporary file, fsync, rename, fsync of the directory; then the commit record in the
same way. A crash leaves a part without a commit, which nobody reads, or nothing.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from raystill.errors import DataError, EnvironmentFault
from raystill.run.disk import require_space
from raystill.run.failpoint import failpoint
from raystill.run.publish import make_directory, publish_file, sha256_file
from raystill.run.remote import is_remote
from raystill.store.codec import rejects_to_table, rows_to_table, scores_to_table, stored_schema
from raystill.store.commit_record import DIGEST_MODULUS, CommitRecord, save_commit
from raystill.store.digest import reject_digest, row_digest, score_digest
from raystill.store.identity import partition_of
from raystill.store.keys import pack_keys
from raystill.store.layout import Kind, part_stem
from raystill.store.records import Int32Array, Reject, Score, TeacherRow
from raystill.store.selfcheck import check_rows, check_scores
from raystill.store.store import TeacherStore
from raystill.store.tier_codec import check_tier, num_positions, tier_digest, tier_to_table
from raystill.store.tier_records import TIER_PLANES, TierKind, TierSignal

# Measured: dictionaries bloat near-random ids, and byte planes help zstd on float32 and int32 alike.
# On float16 they would save a tenth, but DuckDB can't read them there.
_PLANES = "BYTE_STREAM_SPLIT"
_SIGNAL_ENCODINGS = {
    "topk_ids.list.element": _PLANES,
    "sampled_logprob.list.element": _PLANES,
    "tail_logprob.list.element": _PLANES,
    **{f"{name}.list.element": _PLANES for name in TIER_PLANES},
}
# A zstd block is 128 KiB and has one code for all its bytes: with this many bytes in a page, a plane of an
# int32 column fills one block, and one of a float16 column two, so that no block mixes planes.
_PAGE_BYTES = 4 * 128 * 1024
_LEVEL = 3
# Without planes a longer search saves a twentieth, for 0.6 us per token of 20 logprobs.
_LEVELS = {"topk_logprobs.list.element": 6}
_SIGNALS = {*_SIGNAL_ENCODINGS, *_LEVELS}
_LOCK_SECONDS = 1.0
_DICTIONARY_COLUMNS = ("split", "source", "finish_reason", "teacher_id", "code", "flags.list.element")


@dataclass(frozen=True)
class Facts:
    """What a commit says besides what follows from its table; see `CommitRecord`."""

    digest_sum: int
    num_tokens: int = 0
    num_logprobs: int | None = None
    cost_usd: float = 0.0
    journal: str = ""
    retires: tuple[str, ...] = ()


class PartWriter:
    """Commits parts to a store. One per process or actor; close it, or use it as a context manager.

    Its name is unique, and its lock file is held while its process lives, so that what a dead writer left
    behind can be told from what a living one is writing. On object storage there is no repack, and a lock
    only where the store has a place for it. Raises EnvironmentFault while the store is repacked.
    """

    def __init__(self, store: TeacherStore) -> None:
        self._store = store
        self._name = f"{os.getpid()}.{secrets.token_hex(6)}"
        self._sequence = itertools.count(1)
        self._is_open = True
        has_locks = not is_remote(store.path) or store.locks is not None
        self._lock = _lock_name(store, self._name) if has_locks else None
        if is_being_repacked(store):
            self.close()
            raise EnvironmentFault(
                "the teacher store is being repacked",
                where=str(store.path),
                fix="run again when `raystill store repack` has ended",
            )

    @property
    def name(self) -> str:
        """The writer's name, a part of the names of all its files."""
        return self._name

    def commit_rows(self, partition: int, rows: Sequence[TeacherRow], *, journal: str = "") -> CommitRecord:
        """Check, write and commit rows of one partition; `journal` names the segment that held them.

        Raises DataError, before anything is written, for a signal that contradicts its row, a key of another
        partition or a key that occurs twice; EnvironmentFault for a full disk.
        """
        check_rows(rows)
        return self._commit(
            "rows",
            partition,
            [row.key for row in rows],
            rows_to_table(rows),
            Facts(
                digest_sum=sum(map(row_digest, rows)),
                num_tokens=sum(len(row.completion_token_ids) for row in rows),
                cost_usd=math.fsum(row.cost_usd for row in rows),
                journal=journal,
            ),
        )

    def commit_scores(
        self,
        partition: int,
        scores: Sequence[Score],
        *,
        completion_token_ids: Mapping[str, Int32Array] | None = None,
    ) -> CommitRecord:
        """Check, write and commit signals for rows that are stored already.

        All have the same number of logprobs. The sampled token is checked too: against a score's own ids, or
        the rows' `completion_token_ids` by key. Raises like `commit_rows`.
        """
        widths = {score.signal.num_logprobs for score in scores}
        if len(widths) > 1:
            raise DataError(f"one part holds signals of one width, not of {sorted(widths)}")
        check_scores(scores, completion_token_ids or {})
        return self._commit(
            "scores",
            partition,
            [score.key for score in scores],
            scores_to_table(scores),
            Facts(
                digest_sum=sum(map(score_digest, scores)),
                num_tokens=sum(len(score.signal.sampled_logprob_T) for score in scores),
                num_logprobs=next(iter(widths), None),
            ),
        )

    def commit_tier(
        self,
        partition: int,
        kind: TierKind,
        signals: Sequence[tuple[str, TierSignal]],
        *,
        completion_token_ids: Mapping[str, Int32Array] | None = None,
    ) -> CommitRecord:
        """Check, write and commit sampled or hidden signals for rows that are stored already.

        All have the same number of draws, or the same size. Raises like `commit_rows`.
        """
        widths = {signal.width for _, signal in signals}
        if len(widths) > 1:
            raise DataError(f"one part holds signals of one width, not of {sorted(widths)}")
        check_tier(signals, completion_token_ids)
        return self._commit(
            kind,
            partition,
            [key for key, _ in signals],
            tier_to_table(kind, signals),
            Facts(
                digest_sum=sum(tier_digest(key, signal) for key, signal in signals),
                num_tokens=sum(num_positions(signal) for _, signal in signals),
                num_logprobs=next(iter(widths), None),
            ),
        )

    def commit_rejects(self, partition: int, rejects: Sequence[Reject], *, journal: str = "") -> CommitRecord:
        """Write and commit requests that failed for good."""
        return self._commit(
            "rejects",
            partition,
            [reject.key for reject in rejects],
            rejects_to_table(rejects),
            Facts(
                digest_sum=sum(map(reject_digest, rejects)),
                cost_usd=math.fsum(reject.cost_usd for reject in rejects),
                journal=journal,
            ),
        )

    def commit_table(self, kind: Kind, partition: int, table: pa.Table, facts: Facts) -> CommitRecord:
        """Commit rows that were checked before, for they come from other parts. For `repack_store`."""
        return self._commit(kind, partition, table.column("key").to_pylist(), table, facts)

    def next_stem(self) -> str:
        """An unused stem for one of this writer's files."""
        return part_stem(time.time_ns() // 1_000_000, self._name, next(self._sequence))

    def close(self) -> None:
        """Give up the writer's name; nothing can be committed afterwards."""
        if self._lock is not None and self._is_open:
            self._store.layout.writer_lock(self._name).unlink(missing_ok=True)
            self._lock.release()
        self._is_open = False

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _commit(
        self,
        kind: Kind,
        partition: int,
        keys: list[str],
        table: pa.Table,
        facts: Facts,
    ) -> CommitRecord:
        self._check_keys(partition, keys)
        stem = self.next_stem()
        path = self._store.layout.part(kind, partition, stem)
        if not is_remote(path):
            require_space(path.parent, table.nbytes)
        failpoint("store:before_part")
        with publish_file(path, once=True) as temporary:
            write_parquet(table, temporary)
            failpoint("store:part_written")
            sha256, size_bytes = sha256_file(temporary), temporary.stat().st_size
        failpoint("store:before_commit")
        record = save_commit(
            self._store,
            CommitRecord(
                kind=kind,
                partition=partition,
                stem=stem,
                sha256=sha256,
                size_bytes=size_bytes,
                num_tokens=facts.num_tokens,
                num_logprobs=facts.num_logprobs,
                digest_sum=f"{facts.digest_sum % DIGEST_MODULUS:064x}",
                cost_usd=facts.cost_usd,
                journal=facts.journal,
                num_rows=len(keys),
                packed_keys=pack_keys(keys),
                retires=facts.retires,
            ),
        )
        failpoint("store:after_commit")
        return record

    def _check_keys(self, partition: int, keys: list[str]) -> None:
        if not self._is_open:
            raise RuntimeError("the writer is closed")
        if not keys:
            raise DataError("a part without rows can't be committed", where=str(self._store.path))
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError("a key occurs twice in one part", where=f"key {twice}")
        for key in keys:
            if partition_of(key, self._store.num_partitions) != partition:
                raise DataError(f"a key does not belong to partition {partition}", where=f"key {key}")


def _lock_name(store: TeacherStore, writer: str) -> FileLock:
    path = store.layout.writer_lock(writer)
    make_directory(path.parent)
    lock = FileLock(path, timeout=0, thread_local=False)
    lock.acquire()
    return lock


def is_being_repacked(store: TeacherStore) -> bool:
    """Whether some process holds the lock that keeps writers out."""
    if is_remote(store.path) or not store.layout.repack_lock.exists():
        return False
    lock = FileLock(store.layout.repack_lock, timeout=_LOCK_SECONDS, thread_local=False)
    try:
        lock.acquire()  # waits a little: another writer may be looking at this very moment
    except Timeout:
        return True
    lock.release()
    return False


def write_parquet(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """One row group, zstd, byte planes for signals, page checksums; statistics of all but the signals."""
    paths = {
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in table.schema
    }
    pq.write_table(
        table.cast(stored_schema(table.schema)),
        path,
        row_group_size=max(1, table.num_rows),
        compression="zstd",
        compression_level={column: _LEVELS.get(column, _LEVEL) for column in paths},
        use_dictionary=sorted(paths & set(_DICTIONARY_COLUMNS)),
        column_encoding={
            column: encoding
            for column, encoding in _SIGNAL_ENCODINGS.items()
            if column.partition(".")[0] in table.column_names
        },
        data_page_size=_PAGE_BYTES,
        write_statistics=sorted(paths - _SIGNALS),
        write_page_checksum=True,
    )

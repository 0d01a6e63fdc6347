"""Repacking: small parts become large ones, duplicates and superseded rejects go, content stays what it is.

Per group of parts: the merged part, then its commit, which retires the old ones in the same instant; only
then are their files deleted. A crash leaves the old version or the new one, and what is left over is deleted
by the next repack. Readers see one version; one that still holds the old commits finds the rows in the new
part. Writers are kept out meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from raystill.errors import EnvironmentFault
from raystill.run.failpoint import failpoint
from raystill.run.publish import disk_faults, fsync_path
from raystill.run.remote import is_remote
from raystill.store.codec import iter_table_rejects, rejects_to_table
from raystill.store.commit import kept_rows, live_commits, load_commits
from raystill.store.commit_index import read_commits, refresh_indexes
from raystill.store.commit_record import CommitRecord, list_commit_paths
from raystill.store.content import compute_digest_sum
from raystill.store.keys import Int64Array
from raystill.store.layout import KINDS, Kind
from raystill.store.reader import read_part
from raystill.store.records import Reject
from raystill.store.recover import recover_journals
from raystill.store.rejects import fold_rejects
from raystill.store.repair import is_dead_writer, sweep_dead_writers
from raystill.store.store import TeacherStore
from raystill.store.writer import Facts, PartWriter

# One merged part is in memory whole: parts of long completions stay below this.
_MOST_BYTES = 256 << 20
Kept = Int64Array | None


@dataclass(frozen=True)
class Repacked:
    """What a repack did. `dropped` rows were duplicates or superseded rejects."""

    parts_before: int
    parts_after: int
    bytes_before: int
    bytes_after: int
    dropped: int


@dataclass
class _Group:
    """Parts that become one, in the order of precedence, with the rows of each that count."""

    parts: list[tuple[CommitRecord, Kept]] = field(default_factory=list)

    @property
    def num_kept(self) -> int:
        return sum(commit.num_rows if kept is None else len(kept) for commit, kept in self.parts)

    @property
    def size_bytes(self) -> int:
        return sum(commit.size_bytes for commit, _ in self.parts)

    @property
    def is_worth_it(self) -> bool:
        return len(self.parts) > 1 or any(kept is not None for _, kept in self.parts)


def repack_store(store: TeacherStore, *, rows_per_part: int) -> Repacked:
    """Merge neighbouring parts up to `rows_per_part` rows, without duplicates.

    Memory: one merged part. Raises EnvironmentFault while anybody writes to the store or the disk is full,
    DataError where a part is missing or damaged; what was merged by then stays merged.
    """
    recover_journals(store)
    with PartWriter(store) as writer, _without_writers(store, writer):
        before = _all_commits(store)
        _delete_retired(store)
        for partition in range(store.num_partitions):
            for kind in KINDS:
                _repack_partition(store, writer, partition, kind, rows_per_part)
        sweep_dead_writers(store)
        refresh_indexes(store)
        after = _all_commits(store)
    return Repacked(
        parts_before=len(before),
        parts_after=len(after),
        bytes_before=sum(commit.size_bytes for commit in before),
        bytes_after=sum(commit.size_bytes for commit in after),
        dropped=sum(commit.num_rows for commit in before) - sum(commit.num_rows for commit in after),
    )


def _all_commits(store: TeacherStore) -> list[CommitRecord]:
    """Without their keys: of a large store those of all partitions would be too many."""
    return [
        commit.model_copy(update={"packed_keys": b""})
        for partition in range(store.num_partitions)
        for commit in load_commits(store, partition)
    ]


@contextmanager
def _without_writers(store: TeacherStore, own: PartWriter) -> Iterator[None]:
    """Hold the lock that keeps new writers out. Raises EnvironmentFault where one is at work already, and for
    object storage, which has no locks.
    """
    if is_remote(store.path):
        raise EnvironmentFault(
            "a store on object storage can't be repacked: nothing there keeps writers out",
            where=str(store.path),
            fix="copy it to a local directory, repack it there and copy it to a new address",
        )
    lock = FileLock(store.layout.repack_lock, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise _busy(store, "another repack is at work") from error
    try:
        writers = {path.stem for path in store.layout.writers.glob("*.lock")} - {own.name}
        living = sorted(writer for writer in writers if not is_dead_writer(store, writer))
        if living:
            raise _busy(store, f"process {living[0].partition('.')[0]} is writing to it")
        yield
    finally:
        lock.release()


def _repack_partition(
    store: TeacherStore, writer: PartWriter, partition: int, kind: Kind, rows_per_part: int
) -> None:
    # A part whose journal is still there says which of its answers are stored: it must stay.
    commits = [
        commit
        for commit in load_commits(store, partition, kind)
        if not commit.journal or not store.layout.journal(commit.journal).exists()
    ]
    if kind == "rejects":
        if len(commits) > 1:
            _repack_rejects(store, writer, partition, commits)
        return
    groups = _group_parts(commits, kept_rows(commits), rows_per_part)
    # Of equal keys the first part's counts. From the last group to the first, so that no later copy is left
    # when an earlier one moves into a newer part.
    for group in reversed(groups):
        if group.is_worth_it:
            _merge(store, writer, partition, group)


def _group_parts(commits: Sequence[CommitRecord], kept: Sequence[Kept], rows_per_part: int) -> list[_Group]:
    """Neighbours that fit together; scores of one width. Every group keeps a row."""
    groups: list[_Group] = []
    for commit, rows in zip(commits, kept, strict=True):
        last = groups[-1] if groups else None
        count = commit.num_rows if rows is None else len(rows)
        fits = (
            last is not None
            and last.parts[0][0].num_logprobs == commit.num_logprobs
            and last.num_kept + count <= rows_per_part
            and last.size_bytes + commit.size_bytes <= _MOST_BYTES
        )
        if last is not None and (fits or count == 0):
            last.parts.append((commit, rows))
        else:
            groups.append(_Group([(commit, rows)]))
    return groups


def _merge(store: TeacherStore, writer: PartWriter, partition: int, group: _Group) -> None:
    tables, digest_sum, num_tokens = [], 0, 0
    for commit, kept in group.parts:
        table = read_part(store, commit)
        digest_sum += int(commit.digest_sum, 16)
        num_tokens += commit.num_tokens
        if kept is not None:
            lost = table.take(pa.array(np.setdiff1d(np.arange(commit.num_rows), kept)))
            digest_sum -= compute_digest_sum(commit.kind, lost)
            num_tokens -= _count_tokens(commit.kind, lost)
            table = table.take(pa.array(kept))
        tables.append(table)
    merged = pa.concat_tables(tables)
    commits = [commit for commit, _ in group.parts]
    first = commits[0]
    facts = Facts(
        digest_sum=digest_sum,
        num_tokens=num_tokens,
        num_logprobs=first.num_logprobs,
        cost_usd=sum(commit.cost_usd for commit in commits),
        retires=tuple(commit.stem for commit in commits),
    )
    _replace(store, commits, writer.commit_table(first.kind, partition, merged, facts))


def _repack_rejects(
    store: TeacherStore, writer: PartWriter, partition: int, commits: Sequence[CommitRecord]
) -> None:
    history: dict[str, list[Reject]] = defaultdict(list)
    for commit in reversed(commits):  # they come newest first
        for reject in iter_table_rejects(read_part(store, commit)):
            history[reject.key].append(reject)
    kept = [
        fold_rejects([reject for reject in rejects if reject.stage == rejects[-1].stage])
        for _, rejects in sorted(history.items())
    ]
    table = rejects_to_table(kept)
    facts = Facts(
        digest_sum=compute_digest_sum("rejects", table),
        cost_usd=sum(commit.cost_usd for commit in commits),
        retires=tuple(commit.stem for commit in commits),
    )
    _replace(store, commits, writer.commit_table("rejects", partition, table, facts))


def _replace(store: TeacherStore, old: Sequence[CommitRecord], new: CommitRecord) -> None:
    read_part(store, new)  # verified before anything is deleted
    failpoint("repack:committed")
    _delete(store, old)


def _delete_retired(store: TeacherStore) -> None:
    """Delete what an interrupted repack has replaced and not deleted any more."""
    for partition in range(store.num_partitions):
        commits = read_commits(store, partition, list_commit_paths(store, partition))
        live = {(commit.kind, commit.stem) for commit in live_commits(commits)}
        _delete(store, [commit for commit in commits if (commit.kind, commit.stem) not in live])


def _delete(store: TeacherStore, commits: Sequence[CommitRecord]) -> None:
    """Commits first: a part without a commit is nothing, a commit without its part is damage."""
    for paths in (
        [commit.path(store) for commit in commits],
        [commit.part_path(store) for commit in commits],
    ):
        for path in paths:
            with disk_faults(path):
                path.unlink(missing_ok=True)
        failpoint("repack:deleting")
        for folder in {path.parent for path in paths}:
            if folder.is_dir():
                fsync_path(folder)


def _count_tokens(kind: Kind, table: pa.Table) -> int:
    if kind == "rows":
        return int(pc.sum(table.column("num_completion_tokens")).as_py() or 0)
    if kind == "hidden":
        lengths = pc.list_value_length(table.column("hidden"))
        return int(pc.sum(pc.divide(lengths, table.column("hidden_size"))).as_py() or 0)
    return int(pc.sum(pc.list_value_length(table.column("sampled_logprob"))).as_py() or 0)


def _busy(store: TeacherStore, why: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the teacher store can't be repacked: {why}",
        where=str(store.path),
        fix="wait until the runs that use the store have ended, then repack again",
    )

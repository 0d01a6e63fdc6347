"""A journal segment becomes parts: exactly once, whatever was interrupted."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from raystill.errors import DataError
from raystill.run.failpoint import failpoint
from raystill.store.commit import load_commits
from raystill.store.commit_record import CommitRecord
from raystill.store.identity import partition_of
from raystill.store.journal_record import (
    JOURNAL_VERSION,
    REJECT,
    ROW,
    Frame,
    decode_record,
    head_facts,
    scan_segment,
)
from raystill.store.journal_segment import delete_segment, read_segment
from raystill.store.keys import Keys, KeySet
from raystill.store.reader import read_part, stored_keys
from raystill.store.records import Reject, TeacherRow
from raystill.store.rejects import fold_rejects
from raystill.store.repair import move_aside
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter

_ROWS_PER_PART = 8192


@dataclass(frozen=True)
class Compacted:
    """What one segment gave: rows and rejects committed now, and keys that damage has cost.

    `quarantined` is where a damaged segment was moved, None for a whole one, which is deleted.
    """

    rows: int
    rejects: int
    lost: tuple[str, ...]
    torn_bytes: int
    quarantined: Path | None


def compact_segment(store: TeacherStore, writer: PartWriter, path: Path) -> Compacted:
    """Commit a sealed segment's answers as parts, verify them, then delete it; a damaged one is set aside.

    What an interrupted run has committed already is left out. Memory: the segment, one part, and a few dozen
    bytes per key of one partition of the store. Raises DataError where the segment belongs to another teacher
    or to a newer program, EnvironmentFault for a full disk: the segment then stays as it is.
    """
    raw = read_segment(path)
    scan = scan_segment(raw)
    _refuse_foreign(store, path, head_facts(raw, scan))
    groups: dict[tuple[int, int], list[Frame]] = defaultdict(list)
    for frame in scan.frames:
        if frame.kind in (ROW, REJECT):
            groups[frame.kind, partition_of(frame.key, store.num_partitions)].append(frame)
    committed = {ROW: 0, REJECT: 0}
    for kind, partition in sorted(groups):
        pending = _pending(store, partition, path.stem, groups.pop((kind, partition)))
        for start in range(0, len(pending), _ROWS_PER_PART):
            chunk = pending[start : start + _ROWS_PER_PART]
            read_part(store, _commit(writer, partition, path.stem, kind, chunk, raw))
            failpoint("journal:part_verified")
            committed[kind] += len(chunk)
    quarantined = _retire(store, path, is_damaged=scan.is_damaged)
    return Compacted(committed[ROW], committed[REJECT], scan.lost, scan.torn_bytes, quarantined)


def _commit(
    writer: PartWriter, partition: int, stem: str, kind: int, chunk: list[list[Frame]], raw: bytes
) -> CommitRecord:
    records = [[decode_record(frame, raw) for frame in frames] for frames in chunk]
    if kind == REJECT:
        rejects = [fold_rejects([each for each in same if isinstance(each, Reject)]) for same in records]
        return writer.commit_rejects(partition, rejects, journal=stem)
    # Delivered twice: the first answer counts, as everywhere.
    rows = [same[0] for same in records if isinstance(same[0], TeacherRow)]
    return writer.commit_rows(partition, rows, journal=stem)


def _pending(store: TeacherStore, partition: int, stem: str, frames: list[Frame]) -> list[list[Frame]]:
    """Frames of one kind by key, without what is committed: rows by anyone, rejects by an interrupted run of
    this segment."""
    by_key: dict[str, list[Frame]] = {}
    for frame in frames:
        by_key.setdefault(frame.key, []).append(frame)
    if frames[0].kind == ROW:
        committed = stored_keys(store, partition)
    else:
        commits = load_commits(store, partition, "rejects")
        committed = KeySet.from_packed([each.packed_keys for each in commits if each.journal == stem])
    is_done = committed.contains(Keys.from_names(by_key))
    return [same for same, done in zip(by_key.values(), is_done.tolist(), strict=True) if not done]


def _retire(store: TeacherStore, path: Path, *, is_damaged: bool) -> Path | None:
    if is_damaged:
        return move_aside(store, path)
    failpoint("journal:before_delete")
    delete_segment(path)
    return None


def _refuse_foreign(store: TeacherStore, path: Path, facts: dict[str, object]) -> None:
    version = facts.get("journal_version", JOURNAL_VERSION)
    if version != JOURNAL_VERSION:
        raise DataError(
            f"a journal has format version {version}; this program reads {JOURNAL_VERSION}",
            where=str(path),
            fix="let the raystill version that wrote it finish the run",
        )
    teacher = facts.get("teacher_id", store.identity.teacher_id)
    if teacher != store.identity.teacher_id:
        raise DataError(
            f"a journal holds answers of teacher {teacher}; the store's is {store.identity.teacher_id}",
            where=str(path),
            fix="move the file back to the store that it came from",
        )

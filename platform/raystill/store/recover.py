"""Journals of writers that died become parts before anything is planned: paid answers are not asked again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from raystill.run.publish import make_directory
from raystill.run.remote import is_remote
from raystill.store.commit_index import refresh_indexes
from raystill.store.compact import compact_segment
from raystill.store.journal_segment import list_segments
from raystill.store.layout import writer_of
from raystill.store.repair import is_dead_writer, sweep_dead_writers
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter


@dataclass(frozen=True)
class Recovery:
    """What `recover_journals` found. `lost` keys were durable once, and damage has cost them: ask again."""

    segments: int
    rows: int
    rejects: int
    lost: tuple[str, ...]
    quarantined: tuple[Path, ...]


def recover_journals(store: TeacherStore) -> Recovery:
    """Turn the journals of dead writers into parts. Safe beside living writers and other recoveries.

    A torn tail is left out: it was never called durable. Raises DataError for a journal of another teacher or
    a newer format, EnvironmentFault for a full disk; what is not recovered stays.
    """
    rows = rejects = 0
    lost: list[str] = []
    quarantined: list[Path] = []
    segments = dead_journals(store)
    if not segments:
        return Recovery(0, 0, 0, (), ())
    make_directory(store.layout.recovery_lock.parent)
    with FileLock(store.layout.recovery_lock):
        segments = dead_journals(store)  # another process may have recovered some while this one waited
        with PartWriter(store) as writer:
            for path in segments:
                found = compact_segment(store, writer, path)
                rows, rejects = rows + found.rows, rejects + found.rejects
                lost += found.lost
                quarantined += [found.quarantined] if found.quarantined else []
    return Recovery(len(segments), rows, rejects, tuple(lost), tuple(quarantined))


def prepare_store(store: TeacherStore) -> Recovery:
    """What a run does before it plans: recover journals, sweep what dead writers left, refresh the indexes.

    Raises like `recover_journals`.
    """
    recovery = recover_journals(store)
    sweep_dead_writers(store)
    refresh_indexes(store)
    return recovery


def dead_journals(store: TeacherStore) -> list[Path]:
    """Segments whose writer's process has ended, oldest first.

    On object storage only the run that owns the store can tell, see `raystill.store.claim`.
    """
    if is_remote(store.path) and store.locks is None:
        return []
    paths = list_segments(store)
    writers = {writer: None for path in paths if (writer := writer_of(path.name)) is not None}
    dead = {writer for writer in writers if is_dead_writer(store, writer)}
    return [path for path in paths if writer_of(path.name) in dead]

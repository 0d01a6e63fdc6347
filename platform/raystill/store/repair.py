"""Setting damage and leftovers aside, so that the work they stand for becomes pending again."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from raystill.errors import DataError
from raystill.run.publish import fsync_path, make_directory
from raystill.run.remote import is_remote, move_object
from raystill.store.commit_record import list_commit_paths, load_commit
from raystill.store.journal_segment import move_segment_objects
from raystill.store.layout import writer_of
from raystill.store.store import TeacherStore
from raystill.store.verify import Damage, VerifyReport, list_uncommitted


def quarantine_damaged(store: TeacherStore, report: VerifyReport) -> list[Path]:
    """Move every damaged part of `report` and its commit into quarantine/; returns the commits moved.

    Its keys are no longer stored, so the next generate or score asks for them again. Scores of a row that is
    lost go with it: the new row may say something else.
    """
    moved: list[Path] = []
    for damage in report.damaged:
        commits = [(damage.commit, damage.part)]
        if damage.part.is_relative_to(store.path / "partitions"):
            commits += _scores_of(store, damage)
        for commit, part in commits:
            if move_aside(store, commit) is not None:  # first: without it the part does not exist for readers
                moved.append(commit)
            move_aside(store, part)
    return moved


def sweep_dead_writers(store: TeacherStore) -> list[Path]:
    """Delete uncommitted parts and temporary files of writers whose process has ended; returns them.

    Safe beside living writers: each holds its lock, and what it writes is left alone.
    """
    if is_remote(store.path):
        for path in store.layout.writers.glob("*.lock") if store.locks is not None else ():
            if is_dead_writer(store, path.stem):
                path.unlink(missing_ok=True)
        return []  # what dead writers left there no reader sees
    candidates = {path: writer_of(path.name) for path in list_uncommitted(store)}
    writers = {path.stem for path in store.layout.writers.glob("*.lock")} | set(candidates.values())
    dead = {writer for writer in writers if writer is not None and is_dead_writer(store, writer)}
    # Listed again: a writer may have committed and ended between the first look and its lock's release.
    removed = [path for path in list_uncommitted(store) if candidates.get(path) in dead]
    for path in removed:
        path.unlink(missing_ok=True)
    for writer in dead:
        store.layout.writer_lock(writer).unlink(missing_ok=True)
    return removed


def _scores_of(store: TeacherStore, damage: Damage) -> list[tuple[Path, Path]]:
    partition = int(damage.commit.parent.name.removeprefix("p"))
    found = []
    for path in list_commit_paths(store, partition):
        if path.name.startswith("scores-"):
            try:
                commit = load_commit(path)
            except DataError:
                continue  # damaged itself, so it is in the report
            if damage.keys is None or not set(damage.keys).isdisjoint(commit.keys):
                found.append((path, commit.part_path(store)))
    return found


def move_aside(store: TeacherStore, path: Path) -> Path | None:
    """Move a file of the store into quarantine/; returns its new place, None where there is no such file."""
    if not path.exists():
        return None
    place = store.layout.quarantine / path.relative_to(store.path)
    if is_remote(path):
        if path.is_dir():  # a segment of the journal
            move_segment_objects(path, place)
        else:
            move_object(path, place)
        return place
    make_directory(place.parent)
    os.replace(path, place)
    fsync_path(place.parent)
    fsync_path(path.parent)
    return place


def is_dead_writer(store: TeacherStore, writer: str) -> bool:
    """Whether the writer's process has ended: its lock is free or gone."""
    path = store.layout.writer_lock(writer)
    if not path.exists():
        return True
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return False
    lock.release()
    return True

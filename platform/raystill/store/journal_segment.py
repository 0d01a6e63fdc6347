"""Where a segment of the journal lies: a file that is appended to, or a folder of objects, one per group.

An object on S3 can't be appended to, and is durable once it is written; so a group is an object of its own
there, and the objects of a segment, joined in the order of their names, are the bytes of the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from raystill.run.failpoint import failpoint
from raystill.run.publish import disk_faults, fsync_path
from raystill.run.remote import (
    delete_objects,
    is_remote,
    list_folders,
    move_object,
    object_sizes,
    put_object,
    read_objects,
)
from raystill.store.journal_record import encode_head
from raystill.store.store import TeacherStore

_SUFFIX = ".journal"


class Segment(Protocol):
    """One segment that is written to. `size` bytes of it are durable."""

    path: Path
    size: int

    def append(self, raw: bytes) -> None:
        """Make `raw` durable. Raises EnvironmentFault or RemoteError; the segment then ends where it did."""

    def close(self) -> None:
        """Nothing more will be appended."""


def open_segment(store: TeacherStore, stem: str) -> Segment:
    """A new segment. Raises EnvironmentFault where its file can't be created."""
    path, head = store.layout.journal(stem), encode_head(store.identity.teacher_id)
    return _ObjectSegment(path, head) if is_remote(path) else _FileSegment(path, head)


def read_segment(path: Path) -> bytes:
    """All bytes of a segment. Raises RemoteError, or what reading a file raises."""
    return b"".join(read_objects(path).values()) if is_remote(path) else path.read_bytes()


def list_segments(store: TeacherStore) -> list[Path]:
    """Every segment of the store, oldest first. Raises RemoteError."""
    folder = store.layout.journals
    if is_remote(folder):
        return [folder / name for name in list_folders(folder) if name.endswith(_SUFFIX)]
    return sorted(folder.glob(f"[!.]*{_SUFFIX}")) if folder.is_dir() else []


def delete_segment(path: Path) -> None:
    """Forget a segment whose answers are in parts. Raises EnvironmentFault or RemoteError."""
    if is_remote(path):
        # Its head last: what a crash leaves is still a segment, of which every answer is committed.
        delete_objects(path)
        return
    with disk_faults(path):
        path.unlink(missing_ok=True)
        fsync_path(path.parent)


def move_segment_objects(path: Path, place: Path) -> None:
    """Move a damaged segment of objects to `place`. Raises RemoteError."""
    for name in sorted(object_sizes(path), reverse=True):
        move_object(path / name, place / name)


class _FileSegment:
    """One open file."""

    def __init__(self, path: Path, head: bytes) -> None:
        self.path = path
        self.size = 0
        with disk_faults(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            fsync_path(path.parent)
        self._head = head

    def append(self, raw: bytes) -> None:
        """Write and flush; after a failure the file ends where it was durable."""
        raw = raw if self.size else self._head + raw
        with disk_faults(self.path):
            try:
                _write_all(self._descriptor, raw, self.size)
                failpoint("journal:written")
            except OSError:
                os.ftruncate(self._descriptor, self.size)
                raise
            # Never tried twice: after a failed fsync nobody knows what is on the disk.
            os.fsync(self._descriptor)
        self.size += len(raw)
        failpoint("journal:synced")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class _ObjectSegment:
    """A folder of objects on S3."""

    def __init__(self, path: Path, head: bytes) -> None:
        self.path = path
        self.size = 0
        self._head = head
        self._objects = 0

    def append(self, raw: bytes) -> None:
        """Write one object; tried again after a failure, it meets what it wrote itself."""
        raw = raw if self.size else self._head + raw
        failpoint("journal:written")
        put_object(self.path / f"{self._objects:06d}", raw, if_absent=True)
        self._objects += 1
        self.size += len(raw)
        failpoint("journal:synced")

    def close(self) -> None:
        """There is nothing to close."""


def _write_all(descriptor: int, raw: bytes, offset: int) -> None:
    view = memoryview(raw)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written

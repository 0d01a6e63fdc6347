"""Atomic publishing: a reader sees a whole file or directory, or none.

Order for a file: write to a hidden temporary name beside it, fsync, rename, fsync the directory. For a
directory: fill a hidden temporary one, fsync every file, rename, fsync the parent. A crash leaves only
hidden `.tmp-*` names behind, which `sweep_temporaries` removes. A full disk is an EnvironmentFault, whoever
meets it first. On object storage a file is written aside and put there in one piece.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystill.errors import DiskFault, EnvironmentFault
from raystill.run.failpoint import failpoint
from raystill.run.remote import is_remote, put_object

TEMPORARY_PREFIX = ".tmp-"
_CHUNK_BYTES = 1 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


def fsync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create a directory and its parents so that they survive a power loss: every new entry is flushed.

    Raises EnvironmentFault where the place can't be written.
    """
    if is_remote(path) or path.is_dir():  # object storage has none
        return
    with disk_faults(path):
        missing = [place for place in (path, *path.parents) if not place.exists()]
        for directory in reversed(missing or [path]):  # a file in the way fails here too
            directory.mkdir(exist_ok=True)
            fsync_path(directory.parent)


def temporary_sibling(path: Path) -> Path:
    """A hidden unused name on the same filesystem as `path`."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{path.name}")


@contextmanager
def publish_file(path: Path, *, once: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes `path` atomically.

    `once` says that nothing can be at `path` yet, which object storage is told to see to. Raises whatever the
    body raises, after removing the temporary file; EnvironmentFault where the disk is full or the place can't
    be written, RemoteError where object storage refuses.
    """
    if is_remote(path):
        with _publish_object(path, once) as temporary:
            yield temporary
        return
    make_directory(path.parent)
    temporary = temporary_sibling(path)
    try:
        with disk_faults(path):
            yield temporary
            fsync_path(temporary)
            failpoint("publish_file:before_rename")
            os.replace(temporary, path)
            failpoint("publish_file:after_rename")
            fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _publish_object(path: Path, once: bool) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raystill-put-") as directory:
        temporary = Path(directory) / path.name
        with disk_faults(temporary):
            yield temporary
        failpoint("publish_file:before_rename")
        put_object(path, temporary.read_bytes(), if_absent=once)
        failpoint("publish_file:after_rename")


@contextmanager
def publish_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory to fill; on success it becomes `path` atomically.

    An existing `path` is exchanged in one step where the system can (Linux), and removed afterwards.
    Elsewhere it is moved aside first: still never a half directory under the final name, but a crash between
    the two renames leaves none. Raises like `publish_file`.
    """
    make_directory(path.parent)
    temporary = temporary_sibling(path)
    try:
        with disk_faults(path):
            temporary.mkdir()
            yield temporary
            for item in sorted(temporary.rglob("*")):
                fsync_path(item)
            fsync_path(temporary)
            failpoint("publish_directory:before_rename")
            _replace_directory(temporary, path)
            failpoint("publish_directory:after_rename")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_directory(new: Path, path: Path) -> None:
    if path.is_dir() and _exchange(new, path):
        fsync_path(path.parent)
        return
    aside = temporary_sibling(path) if path.exists() else None
    if aside:
        os.replace(path, aside)
        failpoint("publish_directory:between_renames")
    try:
        os.replace(new, path)
    except OSError:
        if aside:
            os.replace(aside, path)
        raise
    fsync_path(path.parent)
    if aside:
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two directories' names atomically with renameat2(2); False where system or filesystem can't."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    here = ctypes.c_int(_AT_FDCWD)
    names = os.fsencode(left.absolute()), os.fsencode(right.absolute())
    return bool(libc.renameat2(here, names[0], here, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0)


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into an EnvironmentFault naming `path`, a full one into a DiskFault; other
    errors pass. Files of safetensors fail with an error of their own, which has the system's in its text."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        found = _SYSTEM_ERROR.search(str(error)) if isinstance(error, SafetensorError) else None
        number = int(found.group(1)) if found else getattr(error, "errno", None)
        if number in _FULL_DISK:
            raise DiskFault(
                "the disk is full",
                where=str(path),
                fix="free some space or choose another directory, then run again",
            ) from error
        if number in _READ_ONLY:
            what, fix = "this place can't be written", "check its owner and permissions, or choose another"
        elif number == errno.EIO:
            what, fix = (
                "the disk reports an error; what was being written is not saved",
                "check the disk and its cables or its network, then run again",
            )
        elif number in {errno.EEXIST, errno.ENOTDIR}:
            what, fix = (
                "a file stands where a directory is needed",
                "move it away or choose another directory",
            )
        else:
            raise
        raise EnvironmentFault(what, where=str(path), fix=fix) from error


def discard_directory(path: Path) -> None:
    """Remove a directory so that no crash leaves a part of it under its name: renamed first, then deleted.

    Raises EnvironmentFault where it can't be renamed.
    """
    if not path.exists():
        return
    aside = temporary_sibling(path)
    with disk_faults(path):
        os.replace(path, aside)
        fsync_path(path.parent)
    failpoint("discard_directory:renamed")
    shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Publish a JSON file with sorted keys."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with publish_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sweep_temporaries(directory: Path) -> int:
    """Remove what crashed writers left directly in `directory`; returns how many. Call under the run lock."""
    removed = 0
    for leftover in directory.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
        removed += 1
    return removed

"""Atomic publishing: a reader sees a whole file or directory, or none.

Order for a file: write to a hidden temporary name beside it, fsync, rename, fsync the directory. For a
directory: fill a hidden temporary one, fsync every file, rename, fsync the parent. A crash leaves only
hidden `.tmp-*` names behind, which `sweep_temporaries` removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystill.run.failpoint import failpoint

TEMPORARY_PREFIX = ".tmp-"
_CHUNK_BYTES = 1 << 20


def fsync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_sibling(path: Path) -> Path:
    """A hidden unused name on the same filesystem as `path`."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{path.name}")


@contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes `path` atomically.

    Raises whatever the body raises, after removing the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        yield temporary
        fsync_path(temporary)
        failpoint("publish_file:before_rename")
        os.replace(temporary, path)
        failpoint("publish_file:after_rename")
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def publish_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory to fill; on success it becomes `path` atomically.

    An existing `path` is moved aside first and removed afterwards, so there is never a half directory
    under the final name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for item in sorted(temporary.rglob("*")):
            fsync_path(item)
        fsync_path(temporary)
        failpoint("publish_directory:before_rename")
        aside = temporary_sibling(path)
        if path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
        failpoint("publish_directory:after_rename")
        fsync_path(path.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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

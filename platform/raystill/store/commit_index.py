"""Indexes: copies of a partition's commits in one file, so that a large store opens few files to resume.

An index decides nothing. Commits that it lacks are read from their own files, and those that are no longer
there are ignored; a damaged or foreign index is as good as none. `refresh_indexes` rewrites those that have
fallen behind, before a run plans its work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raystill.run.publish import publish_file
from raystill.store.commit_record import CommitRecord, list_commit_paths, parse_commit
from raystill.store.records import FORMAT_VERSION
from raystill.store.store import TeacherStore

# Rewriting costs as much as the index is long: once per eighth of growth keeps the sum linear.
_LEAST_NEW = 64
_GROWTH = 8


def read_commits(store: TeacherStore, partition: int, paths: Sequence[Path]) -> list[CommitRecord]:
    """The commits at `paths`, from the partition's index where it has them. Raises like `load_commit`.

    A file that vanishes meanwhile was retired by a repack: the commit that replaces it is read instead, as
    the folder is listed again.
    """
    indexed = load_index(store, partition)
    try:
        return [
            parse_commit(path, indexed.get(path.name) or path.read_bytes(), is_verified=path.name in indexed)
            for path in paths
        ]
    except FileNotFoundError:
        kinds = {path.name.partition("-")[0] for path in paths}
        again = [path for path in list_commit_paths(store, partition) if path.name.partition("-")[0] in kinds]
        return read_commits(store, partition, again)


def load_index(store: TeacherStore, partition: int) -> dict[str, bytes]:
    """Commits by file name, as bytes; {} where there is no usable index."""
    try:
        raw = store.layout.commit_index(partition).read_bytes()
    except FileNotFoundError:
        return {}
    head, _, body = raw.partition(b"\n")
    try:
        facts: dict[str, Any] = json.loads(head)
        entries = [(str(name), int(size)) for name, size in facts["commits"]]
        is_whole = facts["format_version"] == FORMAT_VERSION
        is_whole &= facts["sha256"] == hashlib.sha256(body).hexdigest()
    except (ValueError, KeyError, TypeError):
        return {}
    if not is_whole or sum(size for _, size in entries) != len(body):
        return {}
    commits: dict[str, bytes] = {}
    start = 0
    for name, size in entries:
        commits[name] = body[start : start + size]
        start += size
    return commits


def refresh_indexes(store: TeacherStore) -> int:
    """Rewrite the indexes that lack many commits; returns how many. Raises DataError for a damaged commit."""
    refreshed = 0
    for partition in range(store.num_partitions):
        paths = list_commit_paths(store, partition)
        indexed = load_index(store, partition) if len(paths) >= _LEAST_NEW else {}
        num_new = sum(path.name not in indexed for path in paths)
        if num_new >= max(_LEAST_NEW, len(indexed) // _GROWTH):
            save_index(store, partition, paths)
            refreshed += 1
    return refreshed


def save_index(store: TeacherStore, partition: int, paths: Sequence[Path]) -> None:
    """Publish an index of the commits at `paths`, each verified. Raises DataError for a damaged one."""
    blobs = [path.read_bytes() for path in paths]
    for path, blob in zip(paths, blobs, strict=True):
        parse_commit(path, blob)
    body = b"".join(blobs)
    facts = {
        "format_version": FORMAT_VERSION,
        "sha256": hashlib.sha256(body).hexdigest(),
        "commits": [[path.name, len(blob)] for path, blob in zip(paths, blobs, strict=True)],
    }
    with publish_file(store.layout.commit_index(partition)) as temporary:
        temporary.write_bytes(json.dumps(facts).encode("utf-8") + b"\n" + body)

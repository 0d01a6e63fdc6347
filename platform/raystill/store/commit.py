"""The commits of a partition as every reader sees them: which count, in which order, and of which rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from raystill.errors import DataError
from raystill.store.commit_index import read_commits
from raystill.store.commit_record import CommitRecord, list_commit_paths
from raystill.store.keys import Int64Array, Keys, first_occurrences
from raystill.store.layout import KINDS, Kind, kind_and_stem
from raystill.store.store import TeacherStore


def load_commits(store: TeacherStore, partition: int, kind: Kind | None = None) -> list[CommitRecord]:
    """A partition's live commits, of one kind or of all, in the order of precedence: oldest first, of scores
    the widest first, of rejects the newest first. Every reader sees them alike.
    """
    _check_partition(store, partition)
    wanted = KINDS if kind is None else (kind,)
    paths = [path for path in list_commit_paths(store, partition) if kind_and_stem(path.name)[0] in wanted]
    commits = live_commits(read_commits(store, partition, paths))
    newest_first = [commit for commit in reversed(commits) if commit.kind == "rejects"]
    others = [commit for commit in commits if commit.kind != "rejects"]
    return newest_first + sorted(
        others, key=lambda commit: (commit.kind, -(commit.num_logprobs or 0), commit.stem)
    )


def live_commits(commits: Iterable[CommitRecord]) -> list[CommitRecord]:
    """Without those that another one retires, by stem."""
    listed = sorted(commits, key=lambda commit: commit.stem)
    retired = {(commit.kind, stem) for commit in listed for stem in commit.retires}
    return [commit for commit in listed if (commit.kind, commit.stem) not in retired]


def kept_rows(commits: Sequence[CommitRecord]) -> list[Int64Array | None]:
    """Which rows of each part count, when several parts hold the same key: the first in `commits` wins.

    Per part, the indices of the rows that count, or None where all do.
    """
    first = first_occurrences(Keys.from_packed(*(commit.packed_keys for commit in commits)))
    if first.all():
        return [None] * len(commits)
    kept: list[Int64Array | None] = []
    start = 0
    for commit in commits:
        own = first[start : start + commit.num_rows]
        kept.append(None if own.all() else np.flatnonzero(own))
        start += commit.num_rows
    return kept


def compute_spent_usd(store: TeacherStore) -> float:
    """What all answers and rejects of the store were billed: the sum over its commits."""
    return sum(
        commit.cost_usd
        for partition in range(store.num_partitions)
        for commit in load_commits(store, partition)
    )


def _check_partition(store: TeacherStore, partition: int) -> None:
    if not 0 <= partition < store.num_partitions:
        raise DataError(
            f"partition {partition} of a store with {store.num_partitions}", where=str(store.path)
        )

"""What two stores have in common: which keys only one of them holds, and which rows differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from raystill.store.codec import iter_table_rows, list_scores
from raystill.store.commit import load_commits
from raystill.store.commit_record import CommitRecord
from raystill.store.digest import row_digest, score_digest
from raystill.store.identity import differing_fields, partition_start
from raystill.store.keys import BoolArray, Keys, KeySet, first_occurrences
from raystill.store.layout import Kind
from raystill.store.reader import iter_tables
from raystill.store.store import TeacherStore

_MOST_EXAMPLES = 5
_ALL_BITS = 1 << 60
_COMPARED: tuple[Kind, ...] = ("rows", "scores")


@dataclass
class KindDiff:
    """Counts of one kind of part, with a few keys of each sort as examples."""

    same: int = 0
    only_left: int = 0
    only_right: int = 0
    different: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, sort: str, keys: list[str]) -> None:
        """Count keys of one sort."""
        setattr(self, sort, getattr(self, sort) + len(keys))
        known = self.examples.setdefault(sort, [])
        known += keys[: _MOST_EXAMPLES - len(known)]


@dataclass(frozen=True)
class StoreDiff:
    """How two stores differ. `identity` names the fields of their identities that do."""

    identity: list[str]
    rows: KindDiff
    scores: KindDiff

    @property
    def is_equal(self) -> bool:
        """Same keys, same content."""
        return not any(
            kind.only_left or kind.only_right or kind.different for kind in (self.rows, self.scores)
        )


def diff_stores(left: TeacherStore, right: TeacherStore) -> StoreDiff:
    """Compare two stores, a range of keys at a time, whatever their numbers of partitions.

    Rows are only read where the commits can't tell that a range is equal. Raises DataError where a part is
    missing or damaged.
    """
    kinds: dict[Kind, KindDiff] = {kind: KindDiff() for kind in _COMPARED}
    for partition in range(left.num_partitions):
        for kind, diff in kinds.items():
            _diff_partition(left, right, partition, kind, diff)
    return StoreDiff(differing_fields(left.identity, right.identity), kinds["rows"], kinds["scores"])


def _diff_partition(
    left: TeacherStore, right: TeacherStore, partition: int, kind: Kind, diff: KindDiff
) -> None:
    others = _overlapping(left, right, partition)
    left_commits = load_commits(left, partition, kind)
    right_commits = [commit for other in others for commit in load_commits(right, other, kind)]
    left_keys = _distinct(left_commits)
    right_keys = _distinct(right_commits)
    right_keys = right_keys.take(_in_partition(right_keys, partition, left.num_partitions))
    is_common = KeySet(right_keys).contains(left_keys)
    diff.note("only_left", left_keys.take(~is_common).names())
    diff.note("only_right", right_keys.take(~KeySet(left_keys).contains(right_keys)).names())
    if left.num_partitions == right.num_partitions:
        left_content, right_content = _content(left_commits), _content(right_commits)
        if left_content == right_content and left_content[2]:
            diff.same += len(left_keys)
            return
    common = set(left_keys.take(is_common).names())
    digests = dict(_digests(left, kind, [partition], common))
    differ = [key for key, digest in _digests(right, kind, others, common) if digests[key] != digest]
    diff.note("different", differ)
    diff.same += len(common) - len(differ)


def _overlapping(left: TeacherStore, right: TeacherStore, partition: int) -> list[int]:
    """Partitions of `right` that may hold keys of one of `left`'s."""
    first = partition_start(partition, left.num_partitions)
    last = partition_start(partition + 1, left.num_partitions) - 1
    span = right.num_partitions
    return list(range(first * span // _ALL_BITS, last * span // _ALL_BITS + 1))


def _distinct(commits: list[CommitRecord]) -> Keys:
    keys = Keys.from_packed(*(commit.packed_keys for commit in commits))
    return keys.take(first_occurrences(keys))


def _in_partition(keys: Keys, partition: int, num_partitions: int) -> BoolArray:
    first = partition_start(partition, num_partitions)
    last = partition_start(partition + 1, num_partitions) - 1
    bits_N = keys.high_N >> np.uint64(4)
    return np.asarray((bits_N >= np.uint64(first)) & (bits_N <= np.uint64(last)))


def _content(commits: list[CommitRecord]) -> tuple[int, int, bool]:
    """Equal for equal content where nothing is stored twice."""
    keys = Keys.from_packed(*(commit.packed_keys for commit in commits))
    total = sum(int(commit.digest_sum, 16) for commit in commits) % 2**256
    return len(keys), total, bool(first_occurrences(keys).all())


def _digests(
    store: TeacherStore, kind: Kind, partitions: list[int], keys: set[str]
) -> Iterator[tuple[str, int]]:
    for table in iter_tables(store, kind=kind, keys=keys, partitions=partitions):
        if kind == "rows":
            yield from ((row.key, row_digest(row)) for row in iter_table_rows(table))
        else:
            yield from ((score.key, score_digest(score)) for score in list_scores(table))

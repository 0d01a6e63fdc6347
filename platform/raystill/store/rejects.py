"""Rejects: requests that failed for good, what they cost, and how they are asked again.

Nothing is ever deleted: a key's rejects are its history, the newest says where it stands. Releasing a reject
adds one with the code `released`, which makes its key pending; attempts and cost go on adding up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from raystill.store.codec import iter_table_rejects
from raystill.store.commit import load_commits
from raystill.store.keys import Keys, KeySet, pack_column
from raystill.store.reader import read_part, stored_keys
from raystill.store.records import RELEASED, Reject
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter


def load_rejects(store: TeacherStore, partition: int) -> list[Reject]:
    """A partition's rejects, one per key and stage: the newest failure, with all attempts and all cost.

    Released ones included, and those of keys that succeeded later.
    """
    history: dict[tuple[str, str], list[Reject]] = defaultdict(list)
    for commit in reversed(load_commits(store, partition, "rejects")):
        for reject in iter_table_rejects(read_part(store, commit)):
            history[reject.key, reject.stage].append(reject)
    return [fold_rejects(history[name]) for name in sorted(history)]


def fold_rejects(rejects: Sequence[Reject]) -> Reject:
    """One record of several of a key, oldest first: the last failure, all attempts and all cost."""
    return replace(
        rejects[-1],
        attempts=sum(reject.attempts for reject in rejects),
        cost_usd=sum(reject.cost_usd for reject in rejects),
    )


@dataclass(frozen=True)
class Answered:
    """What need not be asked in one partition: keys with an answer, and keys that were rejected for good."""

    stored: KeySet
    rejected: KeySet

    def is_pending(self, keys: pa.ChunkedArray | pa.Array) -> pa.Array:
        """For a column of keys, whether each is still to be asked, as a mask for `Table.filter`."""
        wanted = Keys.from_packed(pack_column(keys))
        return pa.array(~(self.stored.contains(wanted) | self.rejected.contains(wanted)))


def load_answered(store: TeacherStore, partition: int) -> Answered:
    """What one partition has answered. 16 bytes per key; opens no Parquet file of rows.

    Raises DataError where a committed part is missing or has another size.
    """
    return Answered(stored_keys(store, partition), _rejected_keys(store, partition))


def release_rejects(store: TeacherStore, codes: Collection[str] | None = None) -> int:
    """Make rejected requests pending again, those with one of `codes` or all; returns how many."""
    released = 0
    with PartWriter(store) as writer:
        for partition in range(store.num_partitions):
            stored = stored_keys(store, partition)
            chosen = [
                reject
                for reject in load_rejects(store, partition)
                if reject.stage == "generate"
                and reject.code != RELEASED
                and (codes is None or reject.code in codes)
            ]
            answered = stored.contains(Keys.from_names(reject.key for reject in chosen))
            chosen = [reject for reject, done in zip(chosen, answered, strict=True) if not done]
            if chosen:
                writer.commit_rejects(partition, [_release(reject) for reject in chosen])
            released += len(chosen)
    return released


def _release(reject: Reject) -> Reject:
    reason = f"asked again; was {reject.code}: {reject.reason}"
    return replace(reject, code=RELEASED, reason=reason, attempts=0, cost_usd=0.0, usage=None)


def _rejected_keys(store: TeacherStore, partition: int) -> KeySet:
    """Keys whose newest reject is of the stage generate and was not released."""
    packed = []
    seen = KeySet.from_packed([])
    newer: list[bytes] = []
    for commit in load_commits(store, partition, "rejects"):
        table = read_part(store, commit, ("key", "stage", "code"))
        table = table.filter(pc.equal(table.column("stage"), "generate"))
        column = pack_column(table.column("key"))
        is_new = pa.array(~seen.contains(Keys.from_packed(column)))
        final = pc.and_(is_new, pc.not_equal(table.column("code").combine_chunks(), RELEASED))
        packed.append(pack_column(table.filter(final).column("key")))
        newer.append(column)
        seen = KeySet.from_packed(newer)
    return KeySet.from_packed(packed)

"""The keys of a whole store while rows are added to it: which of many are new. 16 bytes per key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raystill.store.keys import BoolArray, Int64Array, Keys, KeySet, first_occurrences, partition_numbers
from raystill.store.layout import Kind
from raystill.store.reader import stored_keys
from raystill.store.store import TeacherStore


class KnownKeys:
    """Starts as the keys of one kind that the store holds, read by partition when one is first asked for."""

    def __init__(self, store: TeacherStore, kind: Kind = "rows") -> None:
        self._store = store
        self._kind: Kind = kind
        # Per partition, sets of falling size: joining equals makes adding n keys cost n log n.
        self._levels: dict[int, list[KeySet]] = {}

    def add_new(self, names: Sequence[str]) -> BoolArray:
        """Which of `names` were not known, the first of equal ones; they are known from now on.

        Ask for thousands at once. Raises DataError for what is no key, and like `stored_keys`.
        """
        keys = Keys.from_names(names)
        is_new = first_occurrences(keys)
        for partition, rows in self._by_partition(keys):
            levels = self._levels_of(partition)
            for known in levels:
                is_new[rows] &= ~known.contains(keys.take(rows))
            _add(levels, KeySet(keys.take(rows[is_new[rows]])))
        return is_new

    def _levels_of(self, partition: int) -> list[KeySet]:
        if partition not in self._levels:
            self._levels[partition] = [stored_keys(self._store, partition, self._kind)]
        return self._levels[partition]

    def _by_partition(self, keys: Keys) -> list[tuple[int, Int64Array]]:
        numbers = partition_numbers(keys, self._store.num_partitions)
        return [(int(number), np.flatnonzero(numbers == number)) for number in np.unique(numbers)]


def _add(levels: list[KeySet], added: KeySet) -> None:
    if not len(added):
        return
    while len(levels) > 1 and len(levels[-1]) <= len(added):
        added = added.union(levels.pop())
    levels.append(added)

"""The keys of a run as a set of text that takes 16 bytes per key."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set
from pathlib import Path

from raystill.store.identity import partition_of
from raystill.store.keys import Keys, KeySet
from raystill.store.pending import iter_requested_keys


class RequestedKeys(Set[str]):
    """The keys that a request table lists. Asking for thousands at once, by `&`, is much faster than `in`.

    Raises like `iter_requested_keys`.
    """

    def __init__(self, requests: Path, num_partitions: int) -> None:
        self._num_partitions = num_partitions
        self._partitions = {
            partition: KeySet(keys)
            for partition, keys in iter_requested_keys(requests, num_partitions)
            if len(keys)
        }

    def __len__(self) -> int:
        return sum(map(len, self._partitions.values()))

    def __iter__(self) -> Iterator[str]:
        for keys in self._partitions.values():
            yield from keys.keys().names()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self._common([key]))

    def __and__(self, other: Set[object]) -> set[str]:
        return self._common([key for key in other if isinstance(key, str)])

    __rand__ = __and__

    def _common(self, names: Collection[str]) -> set[str]:
        by_partition: dict[int, list[str]] = {}
        for name in names:
            by_partition.setdefault(partition_of(name, self._num_partitions), []).append(name)
        found: set[str] = set()
        for partition, own in by_partition.items():
            if partition in self._partitions:
                is_known = self._partitions[partition].contains(Keys.from_names(own))
                found.update(name for name, known in zip(own, is_known, strict=True) if known)
        return found

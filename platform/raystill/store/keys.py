"""Request keys by the million: 16 bytes each in numpy arrays, never as Python objects.

A key is 32 hex digits; packed, its first 8 bytes are `high` and the others `low`, both as uint64, so that
keys sort like their text. Partitions are ranges of keys: a sorted table of requests is cut into partitions
by two look-ups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystill.errors import DataError
from raystill.store.identity import KEY_LENGTH, partition_start

KEY_BYTES = KEY_LENGTH // 2
BoolArray = npt.NDArray[np.bool_]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]


def pack_keys(keys: Iterable[str]) -> bytes:
    """Keys as 16 bytes each. Raises DataError for text that is no key."""
    joined = "".join(keys)
    try:
        return bytes.fromhex(joined)
    except ValueError as error:
        raise DataError("a key is not 32 hex digits", where=joined[:80]) from error


def unpack_keys(packed: bytes) -> tuple[str, ...]:
    """The inverse of `pack_keys`."""
    text = packed.hex()
    return tuple(text[at : at + KEY_LENGTH] for at in range(0, len(text), KEY_LENGTH))


def pack_column(column: pa.ChunkedArray | pa.Array) -> bytes:
    """A string column of keys, packed without a Python object per key. Raises DataError for what is no key."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return b"".join(map(_pack_chunk, chunks))


@dataclass(frozen=True)
class Keys:
    """N keys, in any order: `high_N` and `low_N`."""

    high_N: UInt64Array
    low_N: UInt64Array

    @classmethod
    def from_packed(cls, *packed: bytes) -> Keys:
        """Keys packed by `pack_keys` or `pack_column`, one after the other."""
        pairs_N2 = np.frombuffer(b"".join(packed), ">u8").reshape(-1, 2)
        return cls(pairs_N2[:, 0].astype(np.uint64), pairs_N2[:, 1].astype(np.uint64))

    def __len__(self) -> int:
        return len(self.high_N)

    def take(self, index_N: Int64Array | BoolArray | slice) -> Keys:
        """Some of the keys."""
        return Keys(self.high_N[index_N], self.low_N[index_N])

    def names(self) -> list[str]:
        """The keys as text."""
        return [f"{high:016x}{low:016x}" for high, low in zip(self.high_N.tolist(), self.low_N.tolist())]

    def is_sorted(self) -> bool:
        """Ascending by the first 64 bits."""
        return bool(np.all(self.high_N[:-1] <= self.high_N[1:]))

    def partition_edges(self, num_partitions: int) -> list[int]:
        """Of sorted keys: where each partition starts, and where the last one ends."""
        # The first 60 bits decide; the start of partition 0 is 0 and every key is below the end of the last.
        starts = [partition_start(number, num_partitions) << 4 for number in range(num_partitions)]
        edges = np.searchsorted(self.high_N, np.array(starts, np.uint64), side="left")
        return [*edges.tolist(), len(self)]


class KeySet:
    """Keys that can be asked for membership, 16 bytes each. Duplicates are welcome."""

    def __init__(self, keys: Keys) -> None:
        order = np.argsort(keys.high_N, kind="stable")
        self._keys = keys.take(order)

    @classmethod
    def from_packed(cls, packed: Sequence[bytes]) -> KeySet:
        """The union of packed keys."""
        return cls(Keys.from_packed(*packed))

    def contains(self, wanted: Keys) -> BoolArray:
        """Which of `wanted` are in the set, in their order."""
        high_N, low_N = self._keys.high_N, self._keys.low_N
        found = np.zeros(len(wanted), np.bool_)
        position = np.searchsorted(high_N, wanted.high_N, side="left")
        open_N = np.arange(len(wanted))
        # Nearly always one round: a second one compares keys that share their first 64 bits, and duplicates.
        while len(open_N):
            inside = position[open_N] < len(high_N)
            open_N = open_N[inside]
            same_high = high_N[position[open_N]] == wanted.high_N[open_N]
            open_N = open_N[same_high]
            same = low_N[position[open_N]] == wanted.low_N[open_N]
            found[open_N[same]] = True
            open_N = open_N[~same]
            position[open_N] += 1
        return found

    def count_distinct(self) -> int:
        """How many different keys the set has."""
        order = np.lexsort((self._keys.low_N, self._keys.high_N)) if self._has_equal_high() else None
        keys = self._keys if order is None else self._keys.take(order)
        if len(keys) == 0:
            return 0
        new = (keys.high_N[1:] != keys.high_N[:-1]) | (keys.low_N[1:] != keys.low_N[:-1])
        return 1 + int(np.count_nonzero(new))

    def _has_equal_high(self) -> bool:
        return bool(np.any(self._keys.high_N[1:] == self._keys.high_N[:-1]))


def first_occurrences(keys: Keys) -> BoolArray:
    """Which keys are not equal to an earlier one."""
    first = np.ones(len(keys), np.bool_)
    order = np.lexsort((keys.low_N, keys.high_N))  # stable: of equal keys the earliest comes first
    high_N, low_N = keys.high_N[order], keys.low_N[order]
    first[order[1:]] = (high_N[1:] != high_N[:-1]) | (low_N[1:] != low_N[:-1])
    return first


def _pack_chunk(chunk: pa.Array) -> bytes:
    if len(chunk) == 0:
        return b""
    if chunk.type != pa.string():
        chunk = chunk.cast(pa.string())
    _, offsets, data = chunk.buffers()
    edges = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    if chunk.null_count or np.any(np.diff(edges) != KEY_LENGTH):
        raise DataError(f"a column of keys holds something else than {KEY_LENGTH} hex digits")
    text = memoryview(data)[int(edges[0]) : int(edges[-1])]
    try:
        return bytes.fromhex(str(text, "ascii"))
    except ValueError as error:
        raise DataError(f"a column of keys holds something else than {KEY_LENGTH} hex digits") from error

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
_LAST_BITS = np.uint64(0xFFFF)
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
    """A string column of keys, packed without an object per key. Raises DataError for what is none."""
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

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Keys:
        """Keys given as text."""
        return cls.from_packed(pack_keys(names))

    @classmethod
    def join(cls, parts: Sequence[Keys]) -> Keys:
        """All of `parts`, one after the other."""
        return cls(
            *(np.concatenate(halves) for halves in zip(*((k.high_N, k.low_N) for k in parts), strict=True))
        )

    def __len__(self) -> int:
        return len(self.high_N)

    def take(self, index_N: Int64Array | BoolArray | slice) -> Keys:
        """Some of the keys."""
        return Keys(self.high_N[index_N], self.low_N[index_N])

    def names(self) -> list[str]:
        """The keys as text."""
        pairs = zip(self.high_N.tolist(), self.low_N.tolist(), strict=True)
        return [f"{high:016x}{low:016x}" for high, low in pairs]

    def is_sorted(self) -> bool:
        """Ascending by the first 64 bits."""
        return bool(np.all(self.high_N[:-1] <= self.high_N[1:]))

    def partition_edges(self, num_partitions: int) -> list[int]:
        """Of sorted keys: where each partition starts, and where the last one ends."""
        edges = np.searchsorted(self.high_N, _partition_starts(num_partitions), side="left")
        return [*edges.tolist(), len(self)]


class KeySet:
    """Keys that can be asked for membership, 16 bytes each. Duplicates are welcome."""

    def __init__(self, keys: Keys) -> None:
        mixed_N = _mix_in_order(keys)
        order = np.argsort(mixed_N)
        self._mixed_N, self._low_N = mixed_N[order], keys.low_N[order]

    def __len__(self) -> int:
        """How many keys were given, duplicates included."""
        return len(self._mixed_N)

    @classmethod
    def from_packed(cls, packed: Sequence[bytes]) -> KeySet:
        """The union of packed keys."""
        return cls(Keys.from_packed(*packed))

    def keys(self) -> Keys:
        """The keys, in the order of their first 48 bits."""
        high_N = (self._mixed_N & ~_LAST_BITS) | ((self._mixed_N - self._low_N) & _LAST_BITS)
        return Keys(high_N, self._low_N)

    def union(self, other: KeySet) -> KeySet:
        """The keys of both."""
        mixed_N = np.concatenate([self._mixed_N, other._mixed_N])
        order = np.argsort(mixed_N)
        joined = KeySet(Keys(mixed_N[:0], mixed_N[:0]))
        joined._mixed_N, joined._low_N = mixed_N[order], np.concatenate([self._low_N, other._low_N])[order]
        return joined

    def contains(self, wanted: Keys) -> BoolArray:
        """Which of `wanted` are in the set, in their order."""
        mixed_N = _mix_in_order(wanted)
        found = np.zeros(len(wanted), np.bool_)
        position = np.searchsorted(self._mixed_N, mixed_N, side="left")
        open_N = np.arange(len(wanted))
        while len(open_N):  # a second round is for different keys that mix to the same value
            open_N = open_N[position[open_N] < len(self._mixed_N)]
            open_N = open_N[self._mixed_N[position[open_N]] == mixed_N[open_N]]
            same = self._low_N[position[open_N]] == wanted.low_N[open_N]
            found[open_N[same]] = True
            open_N = open_N[~same]
            position[open_N] += 1
        return found


def partition_numbers(keys: Keys, num_partitions: int) -> Int64Array:
    """The partition of each key."""
    return np.searchsorted(_partition_starts(num_partitions), keys.high_N, side="right") - 1


def first_occurrences(keys: Keys) -> BoolArray:
    """Which keys are not equal to an earlier one."""
    mixed_N = _mix(keys)
    order = np.argsort(mixed_N, kind="stable")  # of equal keys the earliest comes first
    same = mixed_N[order[1:]] == mixed_N[order[:-1]]
    if np.any(same & (keys.low_N[order[1:]] != keys.low_N[order[:-1]])):
        order = np.lexsort((keys.low_N, mixed_N))
        same = mixed_N[order[1:]] == mixed_N[order[:-1]]
        same &= keys.low_N[order[1:]] == keys.low_N[order[:-1]]
    first = np.ones(len(keys), np.bool_)
    first[order[1:]] = ~same
    return first


def _partition_starts(num_partitions: int) -> UInt64Array:
    # The first 60 bits decide; the start of partition 0 is 0 and every key is below the end of the last.
    starts = [partition_start(number, num_partitions) << 4 for number in range(num_partitions)]
    return np.array(starts, np.uint64)


def _mix(keys: Keys) -> UInt64Array:
    """One number per key, different for nearly all: samples of one request share `high`, so it won't do.

    A key is equal to another where this and `low` are.
    """
    return keys.high_N + keys.low_N


def _mix_in_order(keys: Keys) -> UInt64Array:
    """Like `_mix`, but in the order of all but the last 16 bits of `high`: sorted keys are then looked up
    side by side, which is eight times as fast as all over memory.
    """
    return (keys.high_N & ~_LAST_BITS) | (_mix(keys) & _LAST_BITS)


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

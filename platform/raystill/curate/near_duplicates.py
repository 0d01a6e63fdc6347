"""Rows that say nearly the same: MinHash signatures, banded; every candidate pair is checked.

datasketch makes the signatures and picks bands and rows for a threshold (Broder 1997; Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", 3.4). The banding is ours, because its index is filled one row after
the other in one process: here a Ray task finds the pairs of one band, and what comes out doesn't depend on
any order.

Shape letters: M rows of a batch, P hash functions, R hash functions of a band.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raystill.curate.candidate import Drop
from raystill.curate.facts import Fact
from raystill.curate.words import UInt64Array, hash_ngrams, hash_words

SHINGLE_WORDS = 5
SIGNATURE = "signature"
PAIR_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("first", pa.string())])
_SEED = 1
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

UInt32Array = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class NearDuplicateSettings:
    """P hash functions in `num_bands` bands of `rows_per_band`; pairs count from `threshold` on."""

    threshold: float
    num_permutations: int
    num_bands: int
    rows_per_band: int

    @classmethod
    def for_threshold(cls, threshold: float, num_permutations: int) -> NearDuplicateSettings:
        """Bands that make false positives and negatives around `threshold` equally rare."""
        from datasketch import MinHashLSH

        index = MinHashLSH(threshold=min(threshold, 0.99), num_perm=num_permutations)
        return cls(threshold, num_permutations, int(index.b), int(index.r))


def compute_signatures(texts: Sequence[str], settings: NearDuplicateSettings) -> UInt32Array:
    """MinHash signatures (M x P) of the texts' five-word shingles; a shorter text is one shingle."""
    from datasketch import MinHash

    shingles = [_shingles(text) for text in texts]
    hashes = MinHash.generator(
        shingles, num_perm=settings.num_permutations, seed=_SEED, hashfunc=int, scheme="affine32"
    )
    signatures = [np.array(each.hashvalues, dtype=np.uint32) for each in hashes]
    return np.stack(signatures) if signatures else np.empty((0, settings.num_permutations), np.uint32)


def signature_columns(
    signatures_MP: UInt32Array, is_candidate: Sequence[bool], settings: NearDuplicateSettings
) -> dict[str, pa.Array]:
    """The columns that `find_band_pairs` reads: the signature, and one hash per band; null for other rows."""
    mask = np.logical_not(is_candidate)
    packed = [None if skip else row.tobytes() for row, skip in zip(signatures_MP, mask, strict=True)]
    columns = {SIGNATURE: pa.array(packed, pa.binary(4 * settings.num_permutations))}
    for band in range(settings.num_bands):
        start = band * settings.rows_per_band
        hashes_M = np.zeros(len(signatures_MP), np.uint64)
        for column in range(start, start + settings.rows_per_band):
            hashes_M = (hashes_M + signatures_MP[:, column].astype(np.uint64)) * _FACTOR
        columns[band_column(band)] = pa.array(hashes_M, pa.uint64(), mask=mask)
    return columns


def band_column(band: int) -> str:
    """`band_03`."""
    return f"band_{band:02d}"


def find_band_pairs(
    block: pa.Table, files: Sequence[str], settings: NearDuplicateSettings
) -> Iterator[pa.Table]:
    """The duplicates that one band finds: rows in one bucket whose signatures agree often enough.

    `block` has one row with the band's number. Memory: the band's hashes of all rows, and the signatures of
    rows that share a bucket.
    """
    for band in block.column("band").to_pylist():
        keys, signatures_MP, buckets = _load_candidates(files, band_column(band))
        pairs = [
            pair
            for start, end in buckets
            for pair in _pairs_of_bucket(keys[start:end], signatures_MP[start:end], settings.threshold)
        ]
        rows = [{"key": key, "first": first} for key, first in pairs]
        yield pa.Table.from_pylist(rows, PAIR_SCHEMA)


def find_near_duplicates(facts: Sequence[Fact], pairs: Sequence[tuple[str, str]]) -> dict[str, Drop]:
    """Keys to drop: of rows that pairs connect, directly or through others, the first is kept.

    `pairs` may name rows that are no longer among `facts`; they still connect.
    """
    parents: dict[str, str] = {}
    for left, right in pairs:
        small, large = sorted((_root(parents, left), _root(parents, right)))
        if small != large:
            parents[large] = small
    kept: dict[str, str] = {}
    drops: dict[str, Drop] = {}
    for fact in sorted(facts, key=lambda fact: fact.order):
        first = kept.setdefault(_root(parents, fact.key), fact.key)
        if first != fact.key:
            drops[fact.key] = Drop("near_duplicate", f"of {first}")
    return drops


def text_for_signature(prompt: str, completion: str) -> str:
    """What is compared: prompt and completion."""
    return f"{prompt}\n{completion}"


def _shingles(text: str) -> list[int]:
    words_W = hash_words(text)
    grams = hash_ngrams(words_W, min(SHINGLE_WORDS, max(1, len(words_W))))
    low: UInt64Array = np.unique(grams & np.uint64(0xFFFF_FFFF))
    return [int(value) for value in low.tolist()]


def _load_candidates(
    files: Sequence[str], column: str
) -> tuple[list[str], UInt32Array, list[tuple[int, int]]]:
    """Rows that share a bucket, sorted by bucket and key; and where each bucket starts and ends."""
    tables = [pq.read_table(path, columns=["key", column]) for path in files]
    sizes = [table.num_rows for table in tables]
    hashes = pa.concat_tables(tables).column(column)
    present = np.flatnonzero(np.asarray(hashes.is_valid()))
    _, inverse, counts = np.unique(hashes.drop_null().to_numpy(), return_inverse=True, return_counts=True)
    shared = present[counts[inverse] > 1]
    bucket_of = dict(zip(shared.tolist(), inverse[counts[inverse] > 1].tolist(), strict=True))
    rows: list[tuple[int, str, bytes]] = []
    first = 0
    for path, size in zip(files, sizes, strict=True):
        inside = shared[(shared >= first) & (shared < first + size)]
        if len(inside):
            table = pq.read_table(path, columns=["key", SIGNATURE]).take(pa.array(inside - first))
            found = zip(table.column("key").to_pylist(), table.column(SIGNATURE).to_pylist(), strict=True)
            rows += [(bucket_of[at], *row) for at, row in zip(inside.tolist(), found, strict=True)]
        first += size
    rows.sort(key=lambda row: row[:2])
    starts = [index for index, row in enumerate(rows) if index == 0 or row[0] != rows[index - 1][0]]
    if not rows:
        return [], np.empty((0, 0), np.uint32), []
    signatures = np.frombuffer(b"".join(row[2] for row in rows), np.uint32).reshape(len(rows), -1)
    return [row[1] for row in rows], signatures, list(pairwise([*starts, len(rows)]))


def _pairs_of_bucket(
    keys: Sequence[str], signatures_MP: UInt32Array, threshold: float
) -> Iterator[tuple[str, str]]:
    """(duplicate, first) pairs: the first row takes all that are like it, then the first of the rest."""
    left = np.arange(len(keys))
    while len(left) > 1:
        similarity = (signatures_MP[left] == signatures_MP[left[0]]).mean(axis=1)
        alike = similarity >= threshold
        alike[0] = True
        for index in left[alike][1:]:
            yield keys[int(index)], keys[int(left[0])]
        left = left[~alike]


def _root(parents: dict[str, str], key: str) -> str:
    root = key
    while root in parents:
        root = parents[root]
    while key != root:
        parents[key], key = root, parents[key]
    return root

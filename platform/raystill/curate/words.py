"""Texts as hashes of words: what duplicates and contamination are found by.

Shape letters: W words of a text, G its n-grams.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_SPACES = re.compile(r"\s+")
# A run of word characters, or one symbol: "3 + 4" and "3 - 4" must differ.
_WORD = re.compile(r"\w+|[^\w\s]")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: str) -> str:
    """NFKC, lower case, single spaces: texts that only look different become equal."""
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def hash_words(text: str) -> UInt64Array:
    """One hash per word or symbol of the normalised text (W)."""
    return np.array([_hash_word(word) for word in _WORD.findall(normalise(text))], dtype=np.uint64)


def hash_ngrams(words_W: UInt64Array, size: int) -> UInt64Array:
    """One hash per window of `size` words (G = W - size + 1); none where the text is shorter.

    A polynomial in an odd constant modulo 2^64, then mixed, so that the low bits are as good as the high.
    """
    count = len(words_W) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    hashes_G = np.zeros(count, np.uint64)
    for offset in range(size):
        hashes_G = hashes_G * _FACTOR + words_W[offset : offset + count]
    hashes_G ^= hashes_G >> np.uint64(29)
    hashes_G *= _FACTOR
    hashes_G ^= hashes_G >> np.uint64(32)
    return hashes_G


def text_digest(*texts: str) -> bytes:
    """Sixteen bytes that name the normalised texts; their borders count."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = normalise(text).encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.digest()


@lru_cache(maxsize=1 << 16)
def _hash_word(word: str) -> int:
    raw = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")

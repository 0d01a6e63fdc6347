"""Training rows that contain what a student will be measured on.

A held-out text of at least `ngram` words is in a row where the share of its n-grams that the row's prompt or
completion holds reaches the threshold. A shorter text (a question of a few words) would match by chance: it
must equal the row's whole prompt. Short answers are not looked for at all: "42" is no leak.

Shape letters: N n-grams of all held-out texts, I held-out texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raystill.curate.candidate import Candidate, Drop
from raystill.curate.words import UInt64Array, hash_ngrams, hash_words, text_digest
from raystill.errors import DataError
from raystill.text.prompt_table import iter_prompt_batches

_TEXT_SUFFIXES = {".txt", ".md"}
_JSONL_SUFFIXES = {".jsonl", ".ndjson"}


@dataclass(frozen=True)
class HeldOutText:
    """A text that must not be trained on, and where it comes from."""

    text: str
    origin: str


@dataclass(frozen=True)
class HeldOutIndex:
    """N-grams of all held-out texts, sorted by hash; texts that are shorter, as digests."""

    ngram: int
    hashes_N: UInt64Array
    texts_N: npt.NDArray[np.int32]
    sizes_I: npt.NDArray[np.int32]
    origins: tuple[str, ...]
    short: dict[bytes, str] = field(default_factory=dict)

    def best_overlap(self, texts: Iterable[str]) -> tuple[float, str]:
        """The largest share of a held-out text's distinct n-grams that `texts` hold, and whose it is."""
        own = np.unique(np.concatenate([hash_ngrams(hash_words(text), self.ngram) for text in texts]))
        first = np.searchsorted(self.hashes_N, own, "left")
        last = np.searchsorted(self.hashes_N, own, "right")
        found = [self.texts_N[start:end] for start, end in zip(first, last, strict=True) if end > start]
        if not found:
            return 0.0, ""
        numbers, counts = np.unique(np.concatenate(found), return_counts=True)
        shares = counts / self.sizes_I[numbers]
        best = int(np.argmax(shares))
        return float(shares[best]), self.origins[int(numbers[best])]


@dataclass(frozen=True)
class ContaminationCheck:
    """Drops rows that hold a held-out text. The index is on disk, where every worker reads it once."""

    index_path: Path
    threshold: float

    def __call__(self, row: Candidate) -> Drop | None:
        """None keeps the row."""
        index = self._index
        equal = index.short.get(text_digest(row.prompt))
        if equal is not None:
            return Drop("contaminated", f"equals {equal}")
        share, origin = index.best_overlap((row.prompt, row.completion))
        if share < self.threshold:
            return None
        return Drop("contaminated", f"{share:.0%} of {origin}")

    @cached_property
    def _index(self) -> HeldOutIndex:
        return load_index(self.index_path)


def build_index(texts: Iterable[HeldOutText], ngram: int) -> HeldOutIndex:
    """Index held-out texts by their n-grams of words."""
    hashes: list[UInt64Array] = []
    origins: list[str] = []
    short: dict[bytes, str] = {}
    for held_out in texts:
        grams = np.unique(hash_ngrams(hash_words(held_out.text), ngram))
        if len(grams):
            hashes.append(grams)
            origins.append(held_out.origin)
        elif held_out.text.strip():
            short.setdefault(text_digest(held_out.text), held_out.origin)
    sizes_I = np.array([len(grams) for grams in hashes], np.int32)
    hashes_N = np.concatenate([np.empty(0, np.uint64), *hashes])
    texts_N = np.repeat(np.arange(len(hashes), dtype=np.int32), sizes_I)
    order = np.lexsort((texts_N, hashes_N))
    return HeldOutIndex(ngram, hashes_N[order], texts_N[order], sizes_I, tuple(origins), short)


def save_index(path: Path, index: HeldOutIndex) -> None:
    """Write an index for `load_index`; no pickles inside."""
    labels = json.dumps({"origins": index.origins, "short": {k.hex(): v for k, v in index.short.items()}})
    with path.open("wb") as stream:
        np.savez(
            stream,
            ngram=np.array(index.ngram),
            hashes=index.hashes_N,
            texts=index.texts_N,
            sizes=index.sizes_I,
            labels=np.frombuffer(labels.encode("utf-8", "surrogatepass"), np.uint8),
        )


def load_index(path: Path) -> HeldOutIndex:
    """Read what `save_index` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        labels = json.loads(arrays["labels"].tobytes().decode("utf-8", "surrogatepass"))
        return HeldOutIndex(
            ngram=int(arrays["ngram"]),
            hashes_N=arrays["hashes"],
            texts_N=arrays["texts"],
            sizes_I=arrays["sizes"],
            origins=tuple(labels["origins"]),
            short={bytes.fromhex(digest): origin for digest, origin in labels["short"].items()},
        )


def iter_held_out(prompt_table: Path, against: Iterable[Path]) -> Iterator[HeldOutText]:
    """Prompts and references of the run's evaluation split, then every text of the files in `against`.

    Raises DataError for a file that can't be read.
    """
    for batch in iter_prompt_batches(prompt_table, split="eval"):
        for prompt in batch:
            said = [turn.get("content") for turn in prompt.messages if turn.get("role") == "user"]
            yield HeldOutText("\n".join(str(text) for text in said), f"held-out prompt {prompt.id}")
            if prompt.reference:
                yield HeldOutText(prompt.reference, f"the reference of held-out prompt {prompt.id}")
    for path in against:
        yield from _iter_file(path)


def _iter_file(path: Path) -> Iterator[HeldOutText]:
    try:
        if path.suffix.lower() == ".parquet":
            for number, row in enumerate(_iter_parquet(path)):
                yield from (HeldOutText(text, f"{path.name} row {number}") for text in _strings(row))
        elif path.suffix.lower() in _TEXT_SUFFIXES:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                yield HeldOutText(line, f"{path.name}:{number}")
        else:
            for number, value in _iter_json(path):
                yield from (HeldOutText(text, f"{path.name}:{number}") for text in _strings(value))
    except (OSError, UnicodeDecodeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"a held-out set can't be read: {str(error).splitlines()[0]}",
            where=str(path),
            fix="curate.decontaminate.against takes JSONL, JSON, Parquet and text files",
        ) from error


def _iter_parquet(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _iter_json(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix.lower() not in _JSONL_SUFFIXES:
        yield 1, json.loads(path.read_text(encoding="utf-8"))
        return
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, json.loads(line)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)

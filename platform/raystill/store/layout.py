"""Every path inside a store directory, and the names of its parts. Pure: nothing here touches the disk.

    <store>/
      store.json                                     format, identity, number of partitions; written first
      scorer.json                                    who scores, where that isn't the teacher itself
      partitions/p0003/part-<stem>.parquet           rows (text, ids, and signals captured with generation)
      scores/p0003/part-<stem>.parquet               signals written by the score stage, by key
      sampled/ and hidden/, alike                    its other tiers: draws, and hidden states
      rejects/p0003/part-<stem>.parquet              requests that failed for good
      commits/p0003/<kind>-<stem>.commit             a part exists only if its commit does
      indexes/p0003.index                            copies of many commits in one file; may be deleted
      journals/<stem>.journal                        answers of APIs that no part holds yet
      journals/recovery.lock                         held while journals of dead writers become parts
      writers/<writer>.lock                          held while that writer's process lives
      ledger/                                        what may be billed for requests without an answer
      batches/                                       what is asked for through the Batch API
      quarantine/                                    damaged parts and their commits, moved aside

A commit is one line of JSON (what the part holds, its sha256, the commit's own) and then the part's keys,
16 bytes each. Partitions are ranges of keys: a key's first 60 bits k give floor(k * num_partitions / 2^60).
An index is one line of JSON (the names and sizes of the commits, a sha256) and then those commits unchanged;
the commits themselves decide, and one that an index lacks is read from its own file. A commit may retire
others, which then count as deleted, wherever they still are.

On object storage a journal is a folder of objects, one per flushed group, and writers' locks are files in the
directory of the run that owns the store (owner.json says which); see `raystill.store.claim`.

Format 1 had commits in JSON with all keys as text, partitions by remainder and no journals.

A stem is `<milliseconds>-<writer>-<seq>`: unique without coordination, and older parts come first by name.
`partitions/*/*.parquet` is plain Parquet for pandas, DuckDB and `datasets`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["rows", "scores", "sampled", "hidden", "rejects"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What the stage score writes.
SCORE_KINDS: tuple[Kind, ...] = ("scores", "sampled", "hidden")

_FOLDERS: dict[Kind, str] = {
    "rows": "partitions",
    "scores": "scores",
    "sampled": "sampled",
    "hidden": "hidden",
    "rejects": "rejects",
}
_WRITER_IN_NAME = re.compile(r"-([0-9]+\.[0-9a-f]{12})-[0-9]{6,}\.(?:parquet|commit|journal)$")


@dataclass(frozen=True)
class StoreLayout:
    """Paths of the store at `root`; locks are in `locks` where `root` has none (object storage)."""

    root: Path
    locks: Path | None = None

    @property
    def store_json(self) -> Path:
        return self.root / "store.json"

    @property
    def scorer_json(self) -> Path:
        return self.root / "scorer.json"

    @property
    def writers(self) -> Path:
        return (self.locks or self.root) / "writers"

    @property
    def owner_json(self) -> Path:
        """Which run may write journals, on object storage."""
        return self.root / "owner.json"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    def parts(self, kind: Kind, partition: int) -> Path:
        """Folder of a partition's parts of one kind."""
        return self.root / _FOLDERS[kind] / partition_name(partition)

    def part(self, kind: Kind, partition: int, stem: str) -> Path:
        """A part's file."""
        return self.parts(kind, partition) / f"part-{stem}.parquet"

    def commits(self, partition: int) -> Path:
        """Folder of a partition's commit records, of all kinds."""
        return self.root / "commits" / partition_name(partition)

    def commit(self, kind: Kind, partition: int, stem: str) -> Path:
        """The commit record of a part."""
        return self.commits(partition) / commit_name(kind, stem)

    def commit_index(self, partition: int) -> Path:
        """Copies of a partition's commits in one file."""
        return self.root / "indexes" / f"{partition_name(partition)}.index"

    @property
    def repack_lock(self) -> Path:
        """Held while parts are merged; no writer starts meanwhile."""
        return self.root / "repack.lock"

    @property
    def journals(self) -> Path:
        return self.root / "journals"

    def journal(self, stem: str) -> Path:
        """A segment of a writer's journal."""
        return self.journals / f"{stem}.journal"

    @property
    def recovery_lock(self) -> Path:
        return (self.locks or self.journals) / "recovery.lock"

    @property
    def ledger(self) -> Path:
        """What may be billed, and what probes cost."""
        return self.root / "ledger"

    @property
    def batches(self) -> Path:
        """Records of batches that a provider works on."""
        return self.root / "batches"

    def writer_lock(self, writer: str) -> Path:
        return self.writers / f"{writer}.lock"


def partition_name(partition: int) -> str:
    """`p0003`."""
    return f"p{partition:04d}"


def commit_name(kind: Kind, stem: str) -> str:
    """What the file of a part's commit is called."""
    return f"{kind}-{stem}.commit"


def kind_and_stem(name: str) -> tuple[str, str]:
    """The kind and the stem of a commit whose file is called `name`."""
    kind, _, stem = name.removesuffix(".commit").partition("-")
    return kind, stem


def part_stem(milliseconds: int, writer: str, sequence: int) -> str:
    """What a part and its commit are called, apart from the kind; `milliseconds` since 1970."""
    return f"{milliseconds:013d}-{writer}-{sequence:06d}"


def writer_of(name: str) -> str | None:
    """The writer whose part, commit or temporary file is called `name`, or None for a foreign name."""
    found = _WRITER_IN_NAME.search(name)
    return found.group(1) if found else None

"""Commit records: a part exists only if its record does.

A record is one small JSON file that says what the part holds. It carries the part's keys, so that resuming
and counting never open a Parquet file, and so that a lost part can still name what must be asked again. It
also carries its own checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raystill.errors import DataError
from raystill.run.publish import publish_file
from raystill.store.codec import CODEC
from raystill.store.layout import KINDS, Kind
from raystill.store.records import FORMAT_VERSION
from raystill.store.store import TeacherStore

_NO_CHECKSUM = "0" * 64
DIGEST_MODULUS = 2**256


class CommitRecord(BaseModel):
    """What one committed part holds.

    `num_logprobs` is the width of a score part's signals, None for other kinds. `digest_sum` is the sum of
    its rows' digests modulo 2^256, as 64 hex digits: equal for equal rows in any order. `num_tokens` counts
    completion tokens (of rows) or positions (of scores). `cost_usd` is what its rows or rejects were billed.
    `journal` names the journal segment that the part was made from, "" for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    codec: str = CODEC
    kind: Literal["rows", "scores", "rejects"]
    partition: int = Field(ge=0)
    stem: str = Field(min_length=1)
    sha256: str
    size_bytes: int = Field(ge=0)
    num_tokens: int = Field(ge=0)
    num_logprobs: int | None = None
    digest_sum: str
    cost_usd: float = 0.0
    journal: str = ""
    keys: tuple[str, ...]
    checksum: str = _NO_CHECKSUM

    @property
    def num_rows(self) -> int:
        """Rows of the part, duplicates of other parts included."""
        return len(self.keys)

    def part_path(self, store: TeacherStore) -> Path:
        """Where the part should be."""
        return store.layout.part(self.kind, self.partition, self.stem)

    def path(self, store: TeacherStore) -> Path:
        """Where the record is."""
        return store.layout.commit(self.kind, self.partition, self.stem)


def save_commit(store: TeacherStore, record: CommitRecord) -> CommitRecord:
    """Publish a record, which commits its part; returns it with its checksum."""
    blank = record.model_copy(update={"checksum": _NO_CHECKSUM}).model_dump_json() + "\n"
    checksum = hashlib.sha256(blank.encode("utf-8")).hexdigest()
    with publish_file(record.path(store)) as temporary:
        temporary.write_text(blank.replace(_NO_CHECKSUM, checksum), encoding="utf-8")
    return record.model_copy(update={"checksum": checksum})


def load_commit(path: Path) -> CommitRecord:
    """Read and verify one record. Raises DataError where it is damaged or of an unknown format."""
    raw = path.read_bytes()
    try:
        record = CommitRecord.model_validate_json(raw)
    except ValidationError as error:
        raise _damaged(path, raw) from error
    if record.format_version != FORMAT_VERSION or record.codec != CODEC:
        raise _damaged(path, raw)
    blank = raw.replace(record.checksum.encode(), _NO_CHECKSUM.encode())
    if record.checksum != hashlib.sha256(blank).hexdigest():
        raise _damaged(path, raw)
    if path.name != f"{record.kind}-{record.stem}.json":
        raise _damaged(path, raw)
    return record


def list_commit_paths(store: TeacherStore, partition: int) -> list[Path]:
    """Paths of a partition's records, sorted by name."""
    folder = store.layout.commits(partition)
    return sorted(folder.glob("[!.]*.json")) if folder.is_dir() else []


def load_commits(store: TeacherStore, partition: int, kind: Kind | None = None) -> list[CommitRecord]:
    """A partition's records, of one kind or of all, in the order of precedence: oldest first, and of scores
    the widest first. Every reader sees them alike.
    """
    _check_partition(store, partition)
    wanted = KINDS if kind is None else (kind,)
    commits = [
        load_commit(path)
        for path in list_commit_paths(store, partition)
        if path.name.partition("-")[0] in wanted
    ]
    return sorted(commits, key=lambda commit: (commit.kind, -(commit.num_logprobs or 0), commit.stem))


def kept_rows(commits: Sequence[CommitRecord]) -> list[list[int] | None]:
    """Which rows of each part count, when several parts hold the same key: the first in `commits` wins.

    Per part, the indices of the rows that count, or None where all do.
    """
    seen: set[str] = set()
    kept: list[list[int] | None] = []
    for commit in commits:
        first_here = []
        for index, key in enumerate(commit.keys):
            if key not in seen:
                seen.add(key)
                first_here.append(index)
        kept.append(None if len(first_here) == len(commit.keys) else first_here)
    return kept


def _check_partition(store: TeacherStore, partition: int) -> None:
    if not 0 <= partition < store.num_partitions:
        raise DataError(
            f"partition {partition} of a store with {store.num_partitions}", where=str(store.path)
        )


def _damaged(path: Path, raw: bytes) -> DataError:
    try:
        facts = json.loads(raw)
        found = (facts["format_version"], facts["codec"])
    except (ValueError, KeyError, TypeError):
        found = (FORMAT_VERSION, CODEC)
    if found != (FORMAT_VERSION, CODEC):
        return DataError(
            f"a commit has format version {found[0]!r} and codec {found[1]!r}; this program reads "
            f"{FORMAT_VERSION} and {CODEC!r}",
            where=str(path),
            fix="use the raystill version that wrote it",
        )
    return DataError(
        "a commit record is damaged",
        where=str(path),
        fix="run raystill store verify; quarantining the part makes its keys pending again",
    )

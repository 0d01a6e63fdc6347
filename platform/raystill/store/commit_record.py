"""Commits: a part exists only if its commit does.

A commit is one small file: a line of JSON that says what the part holds, then the part's keys, 16 bytes each.
Resuming and counting therefore never open a Parquet file, and a lost part can still name what must be asked
again. It carries its own checksum. Copies of many commits stand together in an index (`commit_index`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raystill.errors import DataError
from raystill.run.publish import publish_file
from raystill.run.remote import is_remote, remote_faults
from raystill.store.codec import CODEC
from raystill.store.keys import KEY_BYTES, unpack_keys
from raystill.store.layout import Kind, commit_name
from raystill.store.records import FORMAT_VERSION
from raystill.store.store import TeacherStore

_NO_CHECKSUM = "0" * 64
DIGEST_MODULUS = 2**256


class CommitRecord(BaseModel):
    """What one committed part holds.

    `num_logprobs` is the width of a score part's signals (of a sampled part the draws, of a hidden one D),
    None for rows and rejects. `digest_sum` is the sum of its rows' digests modulo 2^256, as 64 hex digits:
    equal for equal rows in any order. `num_tokens` counts completion tokens (of rows) or positions (of
    signals). `cost_usd` is what its rows or rejects were billed, duplicates that a repack dropped included:
    money spent stays spent. `journal` names the journal segment that the part was made from, "" for none.
    `retires` are the stems of older parts of the same kind and partition whose place this one takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    codec: str = CODEC
    kind: Kind
    partition: int = Field(ge=0)
    stem: str = Field(min_length=1)
    sha256: str
    size_bytes: int = Field(ge=0)
    num_rows: int = Field(gt=0)
    num_tokens: int = Field(ge=0)
    num_logprobs: int | None = None
    digest_sum: str
    cost_usd: float = 0.0
    journal: str = ""
    retires: tuple[str, ...] = ()
    checksum: str = _NO_CHECKSUM
    packed_keys: bytes = Field(exclude=True, repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """The part's keys as text, in its order; made anew each time."""
        return unpack_keys(self.packed_keys)

    def part_path(self, store: TeacherStore) -> Path:
        """Where the part should be."""
        return store.layout.part(self.kind, self.partition, self.stem)

    def path(self, store: TeacherStore) -> Path:
        """Where the commit is."""
        return store.layout.commit(self.kind, self.partition, self.stem)


def save_commit(store: TeacherStore, record: CommitRecord) -> CommitRecord:
    """Publish a commit, which makes its part exist; returns it with its checksum."""
    blank = record.model_copy(update={"checksum": _NO_CHECKSUM}).model_dump_json().encode("utf-8") + b"\n"
    checksum = hashlib.sha256(blank + record.packed_keys).hexdigest()
    with publish_file(record.path(store), once=True) as temporary:
        temporary.write_bytes(blank.replace(_NO_CHECKSUM.encode(), checksum.encode()) + record.packed_keys)
    return record.model_copy(update={"checksum": checksum})


def load_commit(path: Path) -> CommitRecord:
    """Read and verify one commit. Raises DataError where it is damaged or of an unknown format."""
    return parse_commit(path, path.read_bytes())


def parse_commit(path: Path, raw: bytes, *, is_verified: bool = False) -> CommitRecord:
    """The commit whose file at `path` holds `raw`; `is_verified` spares its checksum.

    Raises like `load_commit`.
    """
    head, _, packed = raw.partition(b"\n")
    try:
        facts: dict[str, Any] = json.loads(head)
        _refuse_other_format(path, facts)
        record = CommitRecord.model_validate({**facts, "packed_keys": packed})
    except (ValueError, TypeError, ValidationError) as error:
        raise _damaged(path) from error
    if len(packed) != record.num_rows * KEY_BYTES or path.name != commit_name(record.kind, record.stem):
        raise _damaged(path)
    if not is_verified:
        blank = head.replace(record.checksum.encode(), _NO_CHECKSUM.encode()) + b"\n" + packed
        if record.checksum != hashlib.sha256(blank).hexdigest():
            raise _damaged(path)
    return record


def list_commit_paths(store: TeacherStore, partition: int) -> list[Path]:
    """Paths of a partition's commits, sorted by name; retired ones that are still there included."""
    folder = store.layout.commits(partition)
    with remote_faults(folder):
        return sorted(folder.glob("[!.]*.commit")) if is_remote(folder) or folder.is_dir() else []


def _refuse_other_format(path: Path, facts: dict[str, Any]) -> None:
    found = (facts.get("format_version"), facts.get("codec"))
    if found != (FORMAT_VERSION, CODEC) and None not in found:
        raise DataError(
            f"a commit has format version {found[0]!r} and codec {found[1]!r}; this program reads "
            f"{FORMAT_VERSION} and {CODEC!r}",
            where=str(path),
            fix="use the raystill version that wrote it",
        )


def _damaged(path: Path) -> DataError:
    return DataError(
        "a commit is damaged",
        where=str(path),
        fix="run raystill store verify; quarantining the part makes its keys pending again",
    )

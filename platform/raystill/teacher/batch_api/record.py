"""One batch's record on disk. Light to import: `raystill status` reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raystill.errors import DataError

State = Literal["planned", "uploaded", "created", "ended", "settled"]


@dataclass(frozen=True)
class BatchRecord:
    """One batch. `attempts` counts, by key, the batches before this one that had the row in vain.

    `reserved_usd` is the most that the batch can cost, `cost_usd` what its answers did cost. `status` is the
    provider's word for how it ended.
    """

    name: str
    state: State
    keys: tuple[str, ...]
    created_at: float
    attempts: dict[str, int] = field(default_factory=dict)
    reserved_usd: float = 0.0
    cost_usd: float = 0.0
    input_file_id: str = ""
    batch_id: str = ""
    status: str = ""
    error: str = ""
    output_file_id: str = ""
    error_file_id: str = ""

    @property
    def is_paid_for(self) -> bool:
        """Whether the provider may be working on it."""
        return self.state in ("created", "ended")


def load_records(directory: Path) -> list[BatchRecord]:
    """All records of a book, oldest first. Raises DataError for one that can't be read."""
    return [_read_record(path) for path in sorted(directory.glob("batch-*.json"))]


def _read_record(path: Path) -> BatchRecord:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return BatchRecord(**{**facts, "keys": tuple(facts["keys"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise unreadable_record(path) from error


def unreadable_record(path: Path) -> DataError:
    """The error for a record, or the rows of a batch, that can't be read."""
    return DataError(
        "a batch's record can't be read",
        where=str(path),
        fix="restore it from a copy; without it, the batch's rows would be paid for again",
    )

"""Which of a run's rows the stage curate kept. Written by curate, read by training; meets on disk only.

Without a curate stage a run trains on all of its requests (`raystill.store.requests`). With one, training
reads this table instead: a row that was dropped stays in the store, and other runs may use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.run.publish import publish_file

SELECTION_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("completion", pa.string()),
        pa.field("judge_score", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Selected:
    """A row that was kept. `completion` replaces the stored text where personal data was redacted: such a row
    has no signal any more. `judge_score` is None where nothing judged it."""

    key: str
    prompt_id: str
    split: str
    completion: str | None = None
    judge_score: float | None = None


def save_selection(path: Path, rows: Iterable[Selected]) -> None:
    """Publish the kept rows, sorted by key so that equal runs give equal bytes."""
    records = [vars(row) for row in sorted(rows, key=lambda row: row.key)]
    with publish_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(records, SELECTION_SCHEMA), temporary, compression="zstd")


def load_selection(path: Path) -> list[Selected]:
    """The kept rows. Raises DataError if the table can't be read."""
    try:
        table = pq.read_table(path, schema=SELECTION_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            "the table of curated rows can't be read", where=str(path), fix="raystill curate --fresh"
        ) from error
    return [Selected(**row) for row in table.to_pylist()]

"""The prompt table on disk: written once by the stage prepare, read by every later stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.run.publish import publish_file
from raystill.text.prompt_row import PROMPT_SCHEMA, Prompt, Split

_ROW_GROUP = 1 << 16


def save_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Publish a table with these rows, in this order."""
    rows = [
        {
            "id": prompt.id,
            "source": prompt.source,
            "split": prompt.split,
            "messages": json.dumps(prompt.messages, ensure_ascii=False),
            "task": prompt.task,
            "reference": prompt.reference,
            "num_tokens": prompt.num_tokens,
            "sampling": prompt.sampling and json.dumps(prompt.sampling, ensure_ascii=False, sort_keys=True),
        }
        for prompt in prompts
    ]
    table = pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA)
    with publish_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=_ROW_GROUP)


def load_prompts(path: Path, split: Split | None = None) -> list[Prompt]:
    """All prompts of a table, or of one split, in the table's order. Raises as `iter_prompt_batches` does."""
    return [prompt for batch in iter_prompt_batches(path, split=split) for prompt in batch]


def iter_prompt_batches(
    path: Path,
    batch_size: int = 1024,
    split: Split | None = None,
    only: npt.NDArray[np.bool_] | None = None,
) -> Iterator[list[Prompt]]:
    """Read a table in batches of at most `batch_size` rows; empty batches are left out.

    `only` says of every row of the table whether it is read; what no wanted row stands near is skipped.

    Raises DataError if the file is missing, isn't Parquet, or has other columns than `PROMPT_SCHEMA`.
    """
    if not path.is_file():
        raise DataError("there is no prompt table", where=str(path), fix="raystill prepare --config ...")
    try:
        with pq.ParquetFile(path) as table:
            if not table.schema_arrow.equals(PROMPT_SCHEMA):
                raise DataError(
                    f"the prompt table has columns {', '.join(table.schema_arrow.names)}; "
                    f"expected {', '.join(PROMPT_SCHEMA.names)}",
                    where=str(path),
                    fix="raystill prepare --fresh --config ...",
                )
            for batch in _iter_record_batches(table, batch_size, only):
                prompts = [
                    _to_prompt(row) for row in batch.to_pylist() if split is None or row["split"] == split
                ]
                if prompts:
                    yield prompts
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"the prompt table can't be read: {error}",
            where=str(path),
            fix="raystill prepare --fresh --config ...",
        ) from error


def _iter_record_batches(
    table: pq.ParquetFile, batch_size: int, only: npt.NDArray[np.bool_] | None
) -> Iterator[pa.RecordBatch]:
    if only is None:
        yield from table.iter_batches(batch_size=batch_size, use_threads=False)
        return
    start = 0
    for group in range(table.num_row_groups):
        end = start + table.metadata.row_group(group).num_rows
        if only[start:end].any():
            for batch in table.iter_batches(batch_size=batch_size, row_groups=[group], use_threads=False):
                yield batch.filter(pa.array(only[start : start + batch.num_rows]))
                start += batch.num_rows
        start = end


def _to_prompt(row: dict[str, Any]) -> Prompt:
    sampling = row["sampling"] and json.loads(row["sampling"])
    return Prompt(**{**row, "messages": json.loads(row["messages"]), "sampling": sampling})

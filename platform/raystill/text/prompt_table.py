"""The prompt table on disk: written once by the stage prepare, read by every later stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.run.publish import publish_file
from raystill.text.prompt_row import PROMPT_SCHEMA, Prompt, Split


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
        pq.write_table(table, temporary, compression="zstd")


def load_prompts(path: Path, split: Split | None = None) -> list[Prompt]:
    """All prompts of a table, or of one split, in the table's order. Raises as `iter_prompt_batches` does."""
    return [prompt for batch in iter_prompt_batches(path, split=split) for prompt in batch]


def iter_prompt_batches(
    path: Path, batch_size: int = 1024, split: Split | None = None
) -> Iterator[list[Prompt]]:
    """Read a table in batches of at most `batch_size` rows; empty batches are left out.

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
            for batch in table.iter_batches(batch_size=batch_size):
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


def _to_prompt(row: dict[str, Any]) -> Prompt:
    sampling = row["sampling"] and json.loads(row["sampling"])
    return Prompt(**{**row, "messages": json.loads(row["messages"]), "sampling": sampling})

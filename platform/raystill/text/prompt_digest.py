"""A name for everything that a row of the prompt table says: equal names, equal rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raystill.errors import DataError
from raystill.text.prompt_row import PROMPT_SCHEMA

_BATCH_ROWS = 1 << 16
# 32 hex digits, like a request key.
_DIGEST_BYTES = 16


def iter_prompt_digests(path: Path) -> Iterator[list[str]]:
    """The digests of a prompt table's rows in its order, in pieces. Memory: one piece.

    Raises DataError where the table can't be read.
    """
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                yield digest_prompts(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"the prompt table can't be read: {error}",
            where=str(path),
            fix="raystill prepare --fresh --config ...",
        ) from error


def digest_prompts(rows: pa.RecordBatch) -> list[str]:
    """32 hex digits per row, over its columns and their lengths."""
    columns = [rows.column(name).cast(pa.string()) for name in PROMPT_SCHEMA.names]
    # Lengths come first, so that no text can pass for the end of one column and the start of the next.
    lengths = [pc.fill_null(pc.binary_length(column), -1).cast(pa.string()) for column in columns]
    texts = [pc.fill_null(column, "") for column in columns]
    said = pc.binary_join_element_wise(*lengths, *texts, " ").cast(pa.binary())
    return [hashlib.blake2b(each, digest_size=_DIGEST_BYTES).hexdigest() for each in said.to_pylist()]

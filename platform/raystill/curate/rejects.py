"""The table of rows that were dropped, each with its reason."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.curate.select import Curated
from raystill.run.publish import publish_file

REJECT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


def save_rejects(path: Path, curated: Curated) -> None:
    """Publish the dropped rows, sorted by key."""
    prompts = {fact.key: fact.prompt_id for fact in curated.facts}
    rows = [
        {"key": key, "prompt_id": prompts[key], "code": drop.code, "detail": drop.detail}
        for key, drop in sorted(curated.drops.items())
    ]
    with publish_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, REJECT_SCHEMA), temporary, compression="zstd")

"""A store as a Hugging Face `messages` dataset in Parquet, which TRL and Axolotl read as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.run.publish import publish_file
from raystill.store.exporters.rows import iter_sorted_rows, prompt_messages
from raystill.store.reader import iter_tables
from raystill.store.records import TeacherRow
from raystill.store.store import TeacherStore

_BATCH_ROWS = 1024
_COLUMNS = {
    "id": "prompt_id",
    "split": "split",
    "source": "source",
    "sample_index": "sample_index",
    "finish_reason": "finish_reason",
    "reasoning": "reasoning",
    "tool_calls": "tool_calls",
}
_KEYS = ("role", "content")


def export_messages(store: TeacherStore, path: Path) -> int:
    """Write one Parquet file to `path`, atomically; returns the number of rows.

    `messages` is the conversation with the answer as its last turn. Keys that some message has beside role
    and content become fields of every message, null where it has none; values that are not text are written
    as JSON. Equal stores give equal rows. Holds one partition in memory.
    """
    keys = _message_keys(store)
    message = pa.struct([pa.field(key, pa.string()) for key in keys])
    schema = pa.schema(
        [
            pa.field("messages", pa.list_(message)),
            *(pa.field(name, pa.int32() if name == "sample_index" else pa.string()) for name in _COLUMNS),
        ]
    )
    count = 0
    with publish_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for row in iter_sorted_rows(store):
            batch.append(_record(row))
            count += 1
            if len(batch) == _BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema))
    return count


def _record(row: TeacherRow) -> dict[str, Any]:
    messages = [*prompt_messages(row), {"role": "assistant", "content": row.completion}]
    written = [{key: _text(value) for key, value in message.items()} for message in messages]
    return {"messages": written} | {name: getattr(row, field) for name, field in _COLUMNS.items()}


def _message_keys(store: TeacherStore) -> list[str]:
    found: set[str] = set()
    for table in iter_tables(store, columns=("messages",)):
        for text in table.column("messages").to_pylist():
            found.update(*(message.keys() for message in json.loads(text)))
    return [*_KEYS, *sorted(found - set(_KEYS))]


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)

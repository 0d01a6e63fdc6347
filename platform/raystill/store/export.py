"""A store's text as JSONL, for other tools and for reading."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from raystill.run.publish import publish_file
from raystill.store.reader import iter_tables
from raystill.store.store import TeacherStore

_COLUMNS = (
    "prompt_id", "sample_index", "key", "split", "source", "messages", "completion", "reasoning",
    "tool_calls", "finish_reason", "flags",
)  # fmt: skip


def export_jsonl(store: TeacherStore, path: Path, keys: Collection[str] | None = None) -> int:
    """Write one JSON object per row of `keys` (None: all) to `path`, atomically; returns how many.

    Keys: `id` (the prompt's), `instruction` (the last user message), `output` (the completion), `messages`
    (the conversation with the completion as its last turn), `finish_reason`, `split`, `source`; `reasoning`,
    `tool_calls` and `flags` where there are any. Sorted by prompt id and sample index, so equal stores give
    equal bytes. Holds the text of all rows in memory, no signals.
    """
    tables = list(iter_tables(store, columns=_COLUMNS, keys=keys))
    count = 0
    with publish_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        for record in _sorted_records(tables):
            stream.write(json.dumps(_exported(record), ensure_ascii=False) + "\n")
            count += 1
    return count


def _sorted_records(tables: list[pa.Table]) -> Iterator[dict[str, Any]]:
    if not tables:
        return
    order = [(name, "ascending") for name in _COLUMNS[:3]]
    for batch in pa.concat_tables(tables).sort_by(order).to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _exported(record: dict[str, Any]) -> dict[str, Any]:
    messages = json.loads(record["messages"])
    users = [message["content"] for message in messages if message.get("role") == "user"]
    exported = {
        "id": record["prompt_id"],
        "instruction": users[-1] if users else "",
        "output": record["completion"],
        "messages": [*messages, {"role": "assistant", "content": record["completion"]}],
        "finish_reason": record["finish_reason"],
        "split": record["split"],
        "source": record["source"],
    }
    optional = {name: record[name] for name in ("reasoning", "tool_calls", "flags") if record[name]}
    return exported | optional

"""A store's text as JSONL, for other tools and for reading."""

from __future__ import annotations

import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from raystill.run.publish import TEMPORARY_PREFIX, publish_file
from raystill.store.pending import iter_requested
from raystill.store.reader import iter_tables
from raystill.store.store import TeacherStore

_COLUMNS = (
    "prompt_id", "sample_index", "key", "split", "source", "messages", "completion", "reasoning",
    "tool_calls", "finish_reason", "flags",
)  # fmt: skip

_RUN_BYTES = 32 << 20
_BATCH_ROWS = 256
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)


def export_jsonl(store: TeacherStore, path: Path, requests: Path | None = None) -> int:
    """Write one JSON object per row to `path`, atomically; returns how many. `requests` is the request table
    of the run whose rows they are, None for all rows of the store.

    Keys: `id` (the prompt's), `instruction` (the last user message), `output` (the completion), `messages`
    (the conversation with the completion as its last turn), `finish_reason`, `split`, `source`; `reasoning`,
    `tool_calls` and `flags` where there are any. Sorted by prompt id and sample index, so equal stores give
    equal bytes. Memory: some tens of MB of text; more of it is sorted on the disk, beside `path`.
    """
    tables = (
        iter_tables(store, columns=_COLUMNS)
        if requests is None
        else iter_requested(store, requests, columns=_COLUMNS)
    )
    count = 0
    with (
        publish_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as stream,
        tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=path.parent) as scratch,
    ):
        for record in _sorted_records(tables, Path(scratch)):
            stream.write(json.dumps(_exported(record), ensure_ascii=False) + "\n")
            count += 1
    return count


def _sorted_records(tables: Iterable[pa.Table], scratch: Path) -> Iterator[dict[str, Any]]:
    """All rows in order: sorted runs of bounded size, the last in memory, merged."""
    runs: list[Iterator[dict[str, Any]]] = []
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(each.nbytes for each in held) >= _RUN_BYTES:
            path = scratch / f"{len(runs):06d}.arrow"
            with pa.ipc.new_file(str(path), held[0].schema, options=_LZ4) as writer:
                writer.write_table(_in_order(held), max_chunksize=_BATCH_ROWS)
            runs.append(_iter_run(path))
            held = []
    if held:
        runs.append(_iter_records(_in_order(held).to_batches(max_chunksize=_BATCH_ROWS)))
    yield from heapq.merge(*runs, key=lambda record: tuple(record[name] for name in _COLUMNS[:3]))


def _in_order(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).sort_by([(name, "ascending") for name in _COLUMNS[:3]])


def _iter_run(path: Path) -> Iterator[dict[str, Any]]:
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as run:
        yield from _iter_records(run.get_batch(number) for number in range(run.num_record_batches))


def _iter_records(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
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

"""One step of the resume benchmark in its own process: `STEP ARGUMENTS`, see `_STEPS`.

Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from raystill.bench.own_process import peak_memory_mb

_PARTITIONS = 8
_ROWS_PER_PART = 256
_UNBOUNDED = 1 << 60
_CHUNK = 10_000
_TOKENS, _NUM_LOGPROBS = 8, 20


def _build(
    directory: str, share: str, rows: str, extra: str, partitions: str, rows_per_part: str
) -> dict[str, Any]:
    """Write the store's partitions that are `share`, as FIRST/STEP; the first share writes the tables too."""
    from raystill.bench.synthetic_store import SyntheticShape, fill_synthetic_store, write_request_tables

    first, step = map(int, share.split("/"))
    shape = SyntheticShape(int(rows), int(partitions), int(rows_per_part), int(extra))
    fill_synthetic_store(Path(directory), shape, range(first, shape.num_partitions, step))
    if first == 0:
        write_request_tables(Path(directory), shape)
    return {}


def _plan(directory: str, num_prompts: str) -> dict[str, Any]:
    """Plan a run of so many prompts over the store of an earlier step, then answer what it lacks."""
    from raystill.bench.planned_prompts import answer_pending, plan_prompts

    found = {**plan_prompts(Path(directory), int(num_prompts)), "peak_mb": peak_memory_mb()}
    answer_pending(Path(directory))
    return found


def _resume(store_path: str, table: str) -> dict[str, Any]:
    """What the stage asks its store before it asks the teacher."""
    from raystill.store.pending import count_requests, iter_pending
    from raystill.store.recover import prepare_store
    from raystill.store.store import load_store

    store = load_store(Path(store_path))
    prepare_store(store)
    census = count_requests(store, Path(table))
    listed = sum(rows.num_rows for _, rows in iter_pending(store, Path(table))) if census.pending else 0
    if listed != census.pending:
        raise RuntimeError(f"{census.pending} requests are pending, {listed} are listed")
    return {"pending": listed, **_since_start()}


def _journal(store_path: str, records: str, segment_records: str) -> dict[str, Any]:
    """Leave journals behind as a killed process does: durable, and neither sealed nor closed."""
    from raystill.store.identity import partition_of
    from raystill.store.journal import JournalWriter

    store = _open(store_path)
    journals = []
    total = int(records)
    for start in range(0, total, int(segment_records)):
        journal = JournalWriter(store, segment_bytes=_UNBOUNDED)
        journals.append(journal)
        for row in _answers(start, min(total, start + int(segment_records))):
            journal.append(partition_of(row.key, store.num_partitions), row)
        journal.flush()
    _report({"journals": len(journals)})
    sys.stdout.flush()
    os._exit(0)


def _recover(store_path: str) -> dict[str, Any]:
    from raystill.store.recover import recover_journals

    found = recover_journals(_open(store_path))
    return {"rows": found.rows, **_since_start()}


def _fsync(store_path: str, rows: str, side: str) -> dict[str, Any]:
    from raystill.store.identity import partition_of
    from raystill.store.journal import JournalWriter

    store = _open(store_path)
    answers = list(_answers(0, int(rows)))
    if side == "without":
        os.fsync = _leave_out
    with JournalWriter(store, segment_bytes=_UNBOUNDED) as journal:
        started = time.monotonic()
        for row in answers:
            journal.append(partition_of(row.key, store.num_partitions), row)
        journal.flush()
        seconds = time.monotonic() - started
    return {"rows_per_s": len(answers) / seconds}


def _capture(store_path: str, rows: str, form: str) -> dict[str, Any]:
    """Take rows as they come and make them durable; nothing that was written is kept in memory."""
    if form == "parts":
        _capture_parts(store_path, int(rows))
    else:
        from raystill.store.identity import partition_of
        from raystill.store.journal import JournalWriter

        store = _open(store_path)
        with JournalWriter(store) as journal:
            for row in _answers(0, int(rows)):
                journal.append(partition_of(row.key, store.num_partitions), row)
    return _since_start()


def _capture_parts(store_path: str, rows: int) -> None:
    from raystill.bench.synthetic_signals import draw_topk
    from raystill.bench.synthetic_store import synthetic_keys, synthetic_rows
    from raystill.store.writer import PartWriter

    store = _open(store_path)
    pool = [draw_topk(seed, _TOKENS, _NUM_LOGPROBS) for seed in range(_ROWS_PER_PART)]
    signals = [(drawn.token_ids_T, drawn.signal()) for drawn in pool]
    with PartWriter(store) as writer:
        for number, start in enumerate(range(0, rows, _ROWS_PER_PART)):
            partition, count = number % _PARTITIONS, min(_ROWS_PER_PART, rows - start)
            keys = synthetic_keys(partition, _PARTITIONS, count, seed=number)
            writer.commit_rows(
                partition,
                [
                    replace(row, completion_token_ids=ids, signal=signal)
                    for row, (ids, signal) in zip(synthetic_rows(keys), signals, strict=False)
                ],
            )


def _answers(start: int, end: int) -> Iterator[Any]:
    """Rows `start` to `end` of one endless sequence over all partitions; a chunk of keys in memory."""
    from raystill.bench.synthetic_store import synthetic_keys, synthetic_rows

    for first in range(start, end, _CHUNK):
        yield from synthetic_rows(synthetic_keys(0, 1, min(_CHUNK, end - first), seed=first))


def _open(store_path: str) -> Any:
    from raystill.bench.synthetic_store import SYNTHETIC_IDENTITY
    from raystill.store.store import open_store

    return open_store(Path(store_path), SYNTHETIC_IDENTITY, _PARTITIONS)


def _since_start() -> dict[str, float]:
    import psutil

    return {"seconds": time.time() - psutil.Process().create_time(), "peak_mb": peak_memory_mb()}


def _leave_out(fd: Any) -> None:
    """In the place of `os.fsync`."""


def _report(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")


_STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "build": _build,
    "plan": _plan,
    "resume": _resume,
    "journal": _journal,
    "recover": _recover,
    "fsync": _fsync,
    "capture": _capture,
}


def main() -> None:
    """See the module."""
    step, *arguments = sys.argv[1:]
    _report(_STEPS[step](*arguments))


if __name__ == "__main__":
    main()

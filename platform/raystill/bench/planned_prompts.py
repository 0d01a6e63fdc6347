"""Runs of any number of prompts for the resume benchmark: planned like an API's, answered at once."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystill.bench.synthetic_store import SYNTHETIC_IDENTITY, synthetic_table
from raystill.config.schema import Config
from raystill.run.publish import publish_file
from raystill.store.codec import iter_table_rows
from raystill.store.digest import row_digest
from raystill.store.pending import iter_pending
from raystill.store.store import TeacherStore, open_store
from raystill.store.writer import Facts, PartWriter
from raystill.teacher.engine import Sampling
from raystill.teacher.plan_requests import Question, RequestPlanner
from raystill.text.prompt_row import PROMPT_SCHEMA, Prompt

_PARTITIONS = 64
_ROWS_PER_PART = 4096
_BATCH_ROWS = 1 << 16
_SAMPLING = Sampling(0.8, 0.95, 50, 16)
_TEACHER = {"engine": "fake", "open": {"model": {"name": "synthetic"}}}
_TOKENS = list(range(20))


def plan_prompts(directory: Path, num_prompts: int) -> dict[str, Any]:
    """Plan the run of `num_prompts` prompts in `directory`; returns seconds, and what is pending."""
    _save_prompts(directory / "prompts.parquet", num_prompts)
    planner = RequestPlanner(
        config=Config.model_validate({"run": {"name": "bench"}, "teacher": _TEACHER}),
        identity=SYNTHETIC_IDENTITY,
        ask=_ask,
        facts={},
        arrange=lambda rows: rows,
        num_workers=1,
    )
    scratch = directory / "scratch"
    started = time.monotonic()
    plan = planner.plan(_store(directory), directory / "prompts.parquet", _table(directory), scratch)
    seconds = time.monotonic() - started
    shutil.rmtree(scratch)
    return {"seconds": seconds, "pending": sum(shard.num_rows for shard in plan.shards)}


def answer_pending(directory: Path) -> None:
    """Store an answer for every request that has none."""
    store = _store(directory)
    with PartWriter(store) as writer:
        for partition, rows in iter_pending(store, _table(directory)):
            for start in range(0, rows.num_rows, _ROWS_PER_PART):
                table = synthetic_table(rows.column("key").slice(start, _ROWS_PER_PART).to_pylist())
                digests = sum(map(row_digest, iter_table_rows(table)))
                writer.commit_table("rows", partition, table, Facts(digests, num_tokens=4 * table.num_rows))


def _ask(prompt: Prompt) -> Question:
    """As an endpoint is asked: nothing is rendered."""
    return Question(_SAMPLING, json.dumps(prompt.messages), vars(_SAMPLING), _TOKENS)


def _save_prompts(path: Path, num_prompts: int) -> None:
    with publish_file(path) as temporary, pq.ParquetWriter(temporary, PROMPT_SCHEMA) as writer:
        for start in range(0, num_prompts, _BATCH_ROWS):
            texts = [
                json.dumps([{"role": "user", "content": f"What is {number} times {number % 997}?"}])
                for number in range(start, min(num_prompts, start + _BATCH_ROWS))
            ]
            facts: dict[str, Any] = {
                "id": [hashlib.sha256(text.encode()).hexdigest()[:24] for text in texts],
                "messages": texts,
            }
            same = {"source": "bench", "split": "train", "task": "text", "num_tokens": len(_TOKENS)}
            columns = [facts.get(name, [same.get(name)] * len(texts)) for name in PROMPT_SCHEMA.names]
            writer.write_table(pa.table(columns, schema=PROMPT_SCHEMA))


def _store(directory: Path) -> TeacherStore:
    return open_store(directory / "planned_store", SYNTHETIC_IDENTITY, _PARTITIONS)


def _table(directory: Path) -> Path:
    return directory / "plan" / "requests.parquet"

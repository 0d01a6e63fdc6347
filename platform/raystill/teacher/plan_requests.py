"""Which requests a run has, and which of them the store has answered already."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.errors import DataError
from raystill.store.commit import load_commits
from raystill.store.identity import partition_of, request_key
from raystill.store.reader import committed_keys, iter_tables
from raystill.store.rejects import load_answered
from raystill.store.requests import REQUEST_SCHEMA, Request
from raystill.store.store import TeacherStore
from raystill.teacher.engine import Sampling
from raystill.teacher.identify import KnownTeacher
from raystill.teacher.pool import engine_range
from raystill.teacher.preflight import require_open_teacher
from raystill.teacher.row_order import prefix_order
from raystill.teacher.row_work import Row
from raystill.teacher.sampling import num_samples_of, row_sampling, sampling_of
from raystill.teacher.shards import Shard, ShardWriter, shard_rows
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import iter_prompt_batches

TRUNCATED_FLAG = "truncated_prompt"
_WITHOUT_SCHEMAS = ("transformers", "fake")


@dataclass(frozen=True)
class RequestPlan:
    """The requests of a run, their keys by partition, the shards that are to be done, and what is reused.

    `has_schemas` is whether any completion is forced into a JSON Schema.
    """

    requests: tuple[Request, ...]
    keys_by_partition: dict[int, frozenset[str]]
    shards: tuple[Shard, ...]
    reused: int
    has_schemas: bool = False

    @property
    def num_requests(self) -> int:
        """Distinct requests."""
        return len(self.requests)


def plan_requests(
    teacher: KnownTeacher, store: TeacherStore, prompt_table: Path, scratch: Path
) -> RequestPlan:
    """Render every prompt, name its requests; what has neither answer nor reject becomes shards in `scratch`.

    A training prompt has `teacher.base.num_samples` requests, a held-out one has one. Raises DataError for a
    prompt that the chat template refuses, or that asks for a JSON Schema where the engine knows none.
    """
    writer = ShardWriter(scratch, "generate")
    has_schemas = False
    for batch in iter_prompt_batches(prompt_table):
        for prompt in batch:
            sampling = sampling_of(teacher.config, prompt.split, teacher.tool_schema)
            sampling = row_sampling(sampling, prompt.split, prompt.sampling)
            has_schemas = has_schemas or sampling.json_schema is not None
            _require_schema_support(teacher, prompt, sampling)
            for row in _request_rows(teacher, prompt, sampling):
                writer.add(partition_of(row["key"], store.num_partitions), row)
    requests: list[Request] = []
    keys: dict[int, frozenset[str]] = {}
    pending = {}
    for partition, table in writer.iter_partitions():
        requests += [Request(**row) for row in table.select(REQUEST_SCHEMA.names).to_pylist()]
        keys[partition] = frozenset(table.column("key").to_pylist())
        is_pending = load_answered(store, partition).is_pending(table.column("key"))
        pending[partition] = prefix_order(table.filter(is_pending))
    config = teacher.config.teacher
    num_pending = sum(table.num_rows for table in pending.values())
    size = shard_rows(config.store.rows_per_part, num_pending, engine_range(config.vllm)[1])
    shards = [shard for part, table in pending.items() for shard in writer.cut(part, table, size)]
    return RequestPlan(tuple(requests), keys, tuple(shards), len(requests) - num_pending, has_schemas)


@dataclass(frozen=True)
class Accounts:
    """What became of a run's requests."""

    done: int
    rejected: int
    completion_tokens: int
    reject_codes: dict[str, int]


def settle_accounts(plan: RequestPlan, store: TeacherStore) -> Accounts:
    """Count the requests that are stored and those that were rejected; a later success counts as stored."""
    done = tokens = 0
    codes: dict[str, str] = {}
    for partition, keys in plan.keys_by_partition.items():
        stored = committed_keys(store, partition) & keys
        done += len(stored)
        tokens += _stored_tokens(store, partition, stored)
        for table in iter_tables(store, kind="rejects", columns=("key", "code"), partitions=(partition,)):
            for row in table.to_pylist():
                if row["key"] in keys and row["key"] not in stored:
                    codes[row["key"]] = row["code"]
    by_code = {code: list(codes.values()).count(code) for code in sorted(set(codes.values()))}
    return Accounts(done, len(codes), tokens, by_code)


def _stored_tokens(store: TeacherStore, partition: int, keys: set[str]) -> int:
    """Completion tokens of `keys`: from the commit records, or from the rows where the store holds others."""
    commits = load_commits(store, partition, "rows")
    if sum(commit.num_rows for commit in commits) == len(keys):
        return sum(commit.num_tokens for commit in commits)
    total = 0
    for table in iter_tables(store, columns=("num_completion_tokens",), keys=keys, partitions=(partition,)):
        total += sum(table.column("num_completion_tokens").to_pylist())
    return total


def _require_schema_support(teacher: KnownTeacher, prompt: Prompt, sampling: Sampling) -> None:
    if sampling.json_schema is not None and teacher.facts.engine in _WITHOUT_SCHEMAS:
        raise DataError(
            f"a prompt asks for a JSON Schema, which the {teacher.facts.engine} engine can't force",
            where=f"prompt {prompt.id} of {prompt.source} (sampling.json_schema)",
            fix="set teacher.engine: vllm, or leave json_schema out of the prompts' sampling",
        )


def _request_rows(teacher: KnownTeacher, prompt: Prompt, sampling: Sampling) -> Iterator[Row]:
    tokenizer = require_open_teacher(teacher.config).tokenizer
    ids = teacher.chat.render_prompt_ids(prompt.messages, tokenizer.add_generation_prompt)
    flags: list[str] = []
    if tokenizer.truncation:
        kept = _truncate(ids, teacher.facts.context_length, sampling)
        flags, ids = ([TRUNCATED_FLAG] if len(kept) < len(ids) else []), kept
    facts: dict[str, Any] = {**vars(sampling), "stop_token_ids": list(teacher.stop_token_ids)}
    if teacher.markers is not None:
        facts["reasoning"] = teacher.config.teacher.base.reasoning
    for sample_index in range(num_samples_of(teacher.config, prompt.split, sampling)):
        yield {
            "key": request_key(
                teacher.identity, ids, facts, seed=teacher.config.run.seed, sample_index=sample_index
            ),
            "prompt_id": prompt.id,
            "split": prompt.split,
            "sample_index": sample_index,
            "source": prompt.source,
            "messages": json.dumps(prompt.messages, ensure_ascii=False),
            "prompt_token_ids": ids,
            "sampling": prompt.sampling and json.dumps(prompt.sampling, ensure_ascii=False),
            "flags": flags,
        }


def _truncate(ids: list[int], context_length: int, sampling: Sampling) -> list[int]:
    """The end of a prompt that doesn't fit: the question and the assistant's header stand there.

    Leaves room for a whole completion, but never more than half of the context.
    """
    if len(ids) < context_length:
        return ids
    room = max(context_length - sampling.max_new_tokens, context_length // 2)
    return ids[-room:]

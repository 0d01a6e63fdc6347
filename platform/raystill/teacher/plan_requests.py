"""Which requests a run has, and which of them the store has answered already; for every kind of teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from raystill.config.schema import Config
from raystill.store.commit import load_commits
from raystill.store.identity import StoreIdentity, partition_of, request_key
from raystill.store.reader import committed_keys, iter_tables
from raystill.store.rejects import load_answered
from raystill.store.requests import REQUEST_SCHEMA, Request
from raystill.store.store import TeacherStore
from raystill.teacher.engine import Sampling
from raystill.teacher.row_work import Row
from raystill.teacher.sampling import num_samples_of
from raystill.teacher.shards import Shard, ShardWriter, shard_rows
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import iter_prompt_batches


@dataclass(frozen=True)
class Question:
    """What a teacher is asked for one prompt. `rendered` (token ids, or text where the endpoint renders) and
    `facts` (all that decides the answer besides) name it; `prompt_token_ids` may be unknown."""

    sampling: Sampling
    rendered: list[int] | str
    facts: Mapping[str, Any]
    prompt_token_ids: list[int]
    flags: list[str] = field(default_factory=list)


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


@dataclass(frozen=True)
class RequestPlanner:
    """Plans requests. `ask` makes a prompt's question, `arrange` orders a partition's rows.

    `num_workers` share the shards.
    """

    config: Config
    identity: StoreIdentity
    ask: Callable[[Prompt], Question]
    arrange: Callable[[pa.Table], pa.Table]
    num_workers: int

    def plan(self, store: TeacherStore, prompt_table: Path, scratch: Path) -> RequestPlan:
        """Name every prompt's requests; what has neither answer nor reject becomes shards in `scratch`.

        A training prompt has `teacher.base.num_samples` requests, a held-out one has one. Raises what `ask`
        raises.
        """
        writer = ShardWriter(scratch, "generate")
        has_schemas = False
        for batch in iter_prompt_batches(prompt_table):
            for prompt in batch:
                question = self.ask(prompt)
                has_schemas = has_schemas or question.sampling.json_schema is not None
                for row in self._rows(prompt, question):
                    writer.add(partition_of(row["key"], store.num_partitions), row)
        requests: list[Request] = []
        keys: dict[int, frozenset[str]] = {}
        pending: dict[int, pa.Table] = {}
        for partition, table in writer.iter_partitions():
            requests += [Request(**row) for row in table.select(REQUEST_SCHEMA.names).to_pylist()]
            keys[partition] = frozenset(table.column("key").to_pylist())
            is_pending = load_answered(store, partition).is_pending(table.column("key"))
            pending[partition] = self.arrange(table.filter(is_pending))
        num_pending = sum(table.num_rows for table in pending.values())
        size = shard_rows(self.config.teacher.store.rows_per_part, num_pending, self.num_workers)
        shards = [shard for part, table in pending.items() for shard in writer.cut(part, table, size)]
        return RequestPlan(tuple(requests), keys, tuple(shards), len(requests) - num_pending, has_schemas)

    def _rows(self, prompt: Prompt, question: Question) -> Iterator[Row]:
        """One row per sample."""
        for sample_index in range(num_samples_of(self.config, prompt.split, question.sampling)):
            yield {
                "key": request_key(
                    self.identity,
                    question.rendered,
                    question.facts,
                    seed=self.config.run.seed,
                    sample_index=sample_index,
                ),
                "prompt_id": prompt.id,
                "split": prompt.split,
                "sample_index": sample_index,
                "source": prompt.source,
                "messages": json.dumps(prompt.messages, ensure_ascii=False),
                "prompt_token_ids": question.prompt_token_ids,
                "sampling": prompt.sampling and json.dumps(prompt.sampling, ensure_ascii=False),
                "flags": question.flags,
            }


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

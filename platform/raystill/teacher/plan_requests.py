"""Which requests a run has, and which of them the store has answered already; for every kind of teacher."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystill.config.schema import Config
from raystill.store.commit import load_commits
from raystill.store.identity import StoreIdentity, request_key
from raystill.store.keys import Keys, KeySet, pack_column
from raystill.store.pending import count_requests, iter_requested_keys
from raystill.store.reader import iter_tables, stored_keys
from raystill.store.rejects import load_answered
from raystill.store.requests import REQUEST_SCHEMA
from raystill.store.store import TeacherStore
from raystill.teacher.engine import Sampling
from raystill.teacher.listed_prompts import Asked, Matched, PromptDigests, has_prompts_of
from raystill.teacher.request_list import (
    Origin,
    RequestList,
    RequestListWriter,
    count_listed,
    list_origin,
    load_request_list,
    pending_prompts,
)
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
    """A run's requests (a table of `raystill.store.requests`, sorted by key), and the shards to be done.

    `reused` of the requests are answered or rejected already. `has_schemas` is whether any completion is
    forced into a JSON Schema.
    """

    table: Path
    num_requests: int
    shards: tuple[Shard, ...]
    reused: int
    has_schemas: bool = False


@dataclass(frozen=True)
class RequestPlanner:
    """Plans requests. `ask` makes a prompt's question, `arrange` orders the rows of a range of keys.

    `facts` is what `ask` depends on besides the prompt, the identity and the configuration; `num_workers`
    share the shards.
    """

    config: Config
    identity: StoreIdentity
    ask: Callable[[Prompt], Question]
    facts: Mapping[str, Any]
    arrange: Callable[[pa.Table], pa.Table]
    num_workers: int

    def plan(self, store: TeacherStore, prompt_table: Path, table: Path, scratch: Path) -> RequestPlan:
        """Name every prompt's requests in `table`; what has neither answer nor reject becomes shards.

        A training prompt has `teacher.base.num_samples` requests, a held-out one has one. Where `table` is
        what an earlier plan of the same settings left, only prompts that are new to it and those with open
        requests are rendered. Memory: some 18 bytes per prompt where prompts have changed, one where they
        have not, and the rows of a range of keys. Raises what `ask` raises.
        """
        origin = list_origin(self.config, self.identity, prompt_table, self.facts)
        rows = ShardWriter(scratch, "generate", store.num_partitions)
        known, renders_again = load_request_list(table), True
        if known is None or known.origin != origin:
            listing = RequestListWriter(table, scratch / "listed", store.num_partitions)
            digests = PromptDigests(prompt_table, scratch / "digests")
            matched = _match(known, origin, table, digests)
            renders_again = matched is not None
            known = self._list_requests(prompt_table, origin, digests, matched, rows, listing)
        census = count_requests(store, table)
        if census.pending and renders_again:
            self._render_again(prompt_table, rows, pending_prompts(store, table, known.num_prompts))
        size = shard_rows(self.config.teacher.store.rows_per_part, census.pending, self.num_workers)
        shards: list[Shard] = []
        for partition, part in rows.iter_partitions():
            is_pending = load_answered(store, partition).is_pending(part.column("key"))
            shards += rows.cut(partition, self.arrange(part.filter(is_pending)), size)
        reused = census.requests - census.pending
        return RequestPlan(table, census.requests, tuple(shards), reused, known.has_schemas)

    def _list_requests(
        self,
        prompt_table: Path,
        origin: Origin,
        digests: PromptDigests,
        matched: Matched | None,
        rows: ShardWriter,
        listing: RequestListWriter,
    ) -> RequestList:
        """Publish the list: what is `matched` keeps its requests, the other prompts are rendered.

        Where all are, their rows go to `rows`.
        """
        only, asked = None, Asked.of_none(digests.num_prompts)
        if matched is not None:
            listing.keep(matched.new_row_N)
            only, asked = ~matched.is_known_M, matched.asked
        places = iter(range(digests.num_prompts) if only is None else np.flatnonzero(only).tolist())
        for batch in iter_prompt_batches(prompt_table, only=only):
            listed: list[Row] = []
            listed_places: list[int] = []
            for prompt, place in zip(batch, places, strict=False):
                question = self.ask(prompt)
                made = list(self._rows(prompt, question))
                asked.num_requests_N[place] = len(made)
                asked.has_schema_N[place] = question.sampling.json_schema is not None
                for row in made if matched is None else ():
                    rows.add(row)
                listed += [{name: row[name] for name in REQUEST_SCHEMA.names} for row in made]
                listed_places += [place] * len(made)
            listing.add(listed, listed_places)
        has_schemas = bool(asked.has_schema_N.any())
        listing.publish(RequestList(origin, digests.num_prompts, has_schemas))
        digests.save(listing.table, origin, asked)
        return RequestList(origin, digests.num_prompts, has_schemas)

    def _render_again(self, prompt_table: Path, rows: ShardWriter, wanted: npt.NDArray[np.bool_]) -> None:
        for batch in iter_prompt_batches(prompt_table, only=wanted):
            for prompt in batch:
                for row in self._rows(prompt, self.ask(prompt)):
                    rows.add(row)

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


def _match(known: RequestList | None, origin: Origin, table: Path, digests: PromptDigests) -> Matched | None:
    """The prompts whose requests the list `known` at `table` holds; None where that helps little."""
    if known is None or known.origin.settings != origin.settings or not has_prompts_of(table, known.origin):
        return None
    matched = digests.match(table, count_listed(table, known.num_prompts))
    # What is not matched is rendered twice, for its key and for its row.
    return matched if 2 * int(matched.is_known_M.sum()) >= digests.num_prompts else None


@dataclass(frozen=True)
class Accounts:
    """What became of a run's requests."""

    done: int
    rejected: int
    completion_tokens: int
    reject_codes: dict[str, int]


def settle_accounts(plan: RequestPlan, store: TeacherStore) -> Accounts:
    """Count the requests that are stored and those that were rejected; a later success counts as stored."""
    done = rejected = tokens = 0
    codes: Counter[str] = Counter()
    for partition, keys in iter_requested_keys(plan.table, store.num_partitions):
        if not len(keys):
            continue
        is_stored = stored_keys(store, partition).contains(keys)
        done += int(is_stored.sum())
        tokens += _stored_tokens(store, partition, keys.take(is_stored))
        found = _reject_codes(store, partition, KeySet(keys.take(~is_stored)))
        rejected += len(found)
        codes.update(found.values())
    return Accounts(done, rejected, tokens, dict(sorted(codes.items())))


def _reject_codes(store: TeacherStore, partition: int, keys: KeySet) -> dict[str, str]:
    """The newest reject's code of those of `keys` that have one."""
    codes: dict[str, str] = {}
    for table in iter_tables(store, kind="rejects", columns=("key", "code"), partitions=(partition,)):
        own = table.filter(pa.array(keys.contains(Keys.from_packed(pack_column(table.column("key"))))))
        for row in own.to_pylist():
            codes[row["key"]] = row["code"]
    return codes


def _stored_tokens(store: TeacherStore, partition: int, keys: Keys) -> int:
    """Completion tokens of `keys`: from the commit records, or from the rows where the store holds others."""
    commits = load_commits(store, partition, "rows")
    if sum(commit.num_rows for commit in commits) == len(keys):
        return sum(commit.num_tokens for commit in commits)
    total, wanted = 0, KeySet(keys)
    columns = ("key", "num_completion_tokens")
    for table in iter_tables(store, columns=columns, partitions=(partition,)):
        own = wanted.contains(Keys.from_packed(pack_column(table.column("key"))))
        total += int(table.column("num_completion_tokens").to_numpy()[own].sum())
    return total

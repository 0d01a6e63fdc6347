"""Which stored rows get scored, and in whose tokens.

A row that the scorer's own tokenizer wrote is scored as it stands. Any other is known as text as far as the
scorer is concerned: its prompt is rendered and its completion tokenised anew, and the score carries the ids
that it belongs to.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.store.keys import Keys
from raystill.store.reader import iter_tables, keys_to_score, unscored_keys
from raystill.store.records import Reject
from raystill.store.scorer import record_scorer
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter
from raystill.teacher.identify import KnownTeacher
from raystill.teacher.pool import engine_range
from raystill.teacher.preflight import require_open_teacher
from raystill.teacher.row_order import prefix_order
from raystill.teacher.row_work import Row
from raystill.teacher.shards import Shard, ShardWriter, shard_rows
from raystill.text.answer_ids import encode_answer

_IDS = ("key", "prompt_id", "prompt_token_ids", "completion_token_ids")
_TEXTS = ("messages", "completion", "tool_calls", "finish_reason")
# Neither rendering nor tokenising can do these rows; the text of the error says why.
_TEMPLATE_CODE = "template"


@dataclass(frozen=True)
class ScorePlan:
    """Shards of the rows to score, `tokenised` of them for it; `rejected` further ones can't be read."""

    shards: tuple[Shard, ...] = ()
    tokenised: int = 0
    rejected: int = 0

    @property
    def num_rows(self) -> int:
        """Rows in the shards."""
        return sum(shard.num_rows for shard in self.shards)


def plan_scores(
    config: Config,
    store: TeacherStore,
    keys: Set[str],
    scratch: Path,
    identify: Callable[[], KnownTeacher],
    *,
    only_texts: bool = False,
) -> ScorePlan:
    """Cut the rows of `keys` whose signals are narrower than is configured into shards under `scratch`.

    `identify` is called only where there is something to score; its teacher becomes the store's scorer. Rows
    that its template refuses are committed as rejects. `only_texts` leaves out rows in the scorer's own
    tokens, and wants one logprob at least: the others get ids by it. Raises what `record_scorer` raises, and
    DataError where signals of other tokens are stored already. Memory: 16 bytes per row, and one partition's
    keys.
    """
    num_logprobs = max(config.teacher.signals.num_logprobs, 1 if only_texts else 0)
    pending = {
        partition: Keys.from_names(keys_to_score(store, partition, num_logprobs) & keys)
        for partition in range(store.num_partitions)
    }
    if not any(map(len, pending.values())):
        return ScorePlan()
    scorer = identify()
    own_tokens = scorer.identity.tokenizer_sha256 == store.identity.tokenizer_sha256
    if not own_tokens:
        _require_no_signals(store, scorer)
    elif only_texts:
        pending = {
            partition: Keys.from_names(_texts(store, partition, set(wanted.names())))
            for partition, wanted in pending.items()
        }
        if not any(map(len, pending.values())):
            return ScorePlan()
    record_scorer(store, scorer.identity)
    rows = _Rows(scorer, store, ShardWriter(scratch, "score", store.num_partitions), own_tokens)
    for partition, wanted in pending.items():
        if len(wanted):
            rows.add_partition(partition, set(wanted.names()))
    rows.commit_rejects()
    size = shard_rows(config.teacher.store.rows_per_part, rows.count, engine_range(config.teacher.vllm)[1])
    shards = tuple(
        shard
        for partition, table in rows.writer.iter_partitions()
        for shard in rows.writer.cut(partition, prefix_order(table), size)
    )
    return ScorePlan(shards, rows.tokenised, sum(map(len, rows.rejects.values())))


class _Rows:
    """Rows on their way into shards, and those that can't get there."""

    def __init__(
        self, scorer: KnownTeacher, store: TeacherStore, writer: ShardWriter, own_tokens: bool
    ) -> None:
        self.writer = writer
        self.count = self.tokenised = 0
        self.rejects: dict[int, list[Reject]] = defaultdict(list)
        self._scorer = scorer
        self._store = store
        self._own_tokens = own_tokens
        self._header = require_open_teacher(scorer.config).tokenizer.add_generation_prompt

    def add_partition(self, partition: int, wanted: set[str]) -> None:
        """Read the rows `wanted` of one partition."""
        columns = (*_IDS, *_TEXTS)
        for table in iter_tables(self._store, columns=columns, keys=wanted, partitions=(partition,)):
            for row in table.to_pylist():
                try:
                    self.writer.add(self._work_row(row))
                except DataError as error:
                    reject = Reject(
                        row["key"], row["prompt_id"], "score", _TEMPLATE_CODE, error.problems[0].what, 1
                    )
                    self.rejects[partition].append(reject)
                    continue
                self.count += 1

    def commit_rejects(self) -> None:
        """Commit what could not be read, unless an earlier plan has."""
        if not self.rejects:
            return
        with PartWriter(self._store) as writer:
            for partition, found in sorted(self.rejects.items()):
                known = unscored_keys(self._store, partition)
                new = [reject for reject in found if reject.key not in known]
                if new:
                    writer.commit_rejects(partition, new)

    def _work_row(self, row: dict[str, Any]) -> Row:
        work: Row = {name: row[name] for name in _IDS}
        if self._own_tokens and row["completion_token_ids"]:
            return {**work, "is_tokenised": False}
        prompt, completion = encode_answer(
            self._scorer.chat,
            json.loads(row["messages"]),
            row["completion"],
            row["tool_calls"],
            row["finish_reason"],
            add_generation_prompt=self._header,
        )
        self.tokenised += 1
        return {
            **work,
            "prompt_token_ids": prompt,
            "completion_token_ids": completion,
            "is_tokenised": True,
        }


def _texts(store: TeacherStore, partition: int, wanted: set[str]) -> set[str]:
    """Those of `wanted` whose rows have no ids."""
    columns = ("key", "num_completion_tokens")
    return {
        row["key"]
        for table in iter_tables(store, columns=columns, keys=wanted, partitions=(partition,))
        for row in table.to_pylist()
        if not row["num_completion_tokens"]
    }


def _require_no_signals(store: TeacherStore, scorer: KnownTeacher) -> None:
    """Raises DataError where rows have signals already, in tokens that are not the scorer's."""
    if not store.identity.tokenizer_sha256:
        return  # rows without ids have no signals
    for table in iter_tables(store, columns=("num_logprobs",)):
        if table.column("num_logprobs").null_count < table.num_rows:
            raise DataError(
                f"the store holds logprobs of {store.identity.teacher}, whose tokens are not those of "
                f"{scorer.identity.teacher}: a student can't learn from both",
                where=str(store.path),
                fix="score with a teacher of the same tokenizer, or generate into a new store with "
                "teacher.signals.capture: score",
            )

"""The score stage's other tiers: stored completions get draws or hidden states instead of a top k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raystill.config.schema import Config
from raystill.store.layout import Kind
from raystill.store.reader import iter_tables
from raystill.store.store import TeacherStore
from raystill.store.tier_reader import keys_without_tier, load_scored_ids
from raystill.store.tier_records import HiddenSignal, SampledSignal, TierKind, TierSignal
from raystill.store.writer import PartWriter
from raystill.teacher.engine import TeacherEngine
from raystill.teacher.identify import KnownTeacher
from raystill.teacher.preflight import preflight
from raystill.teacher.row_work import Answer, Row
from raystill.teacher.shards import Shard, ShardWriter, shard_rows

if TYPE_CHECKING:
    from raystill.teacher.build_engine import EngineBlueprint

_COLUMNS = ("key", "prompt_id", "prompt_token_ids", "completion_token_ids")


@dataclass(frozen=True)
class TierWork:
    """Captures one tier for completions that are stored already; needs the transformers engine."""

    kind: TierKind
    num_draws: int

    @property
    def commits(self) -> Kind:
        """Parts of the tier."""
        return self.kind

    def prepare(self) -> None:
        """Nothing: signals are committed as they are."""

    def size(self, row: Row) -> int:
        """Prompt and completion."""
        return len(row["prompt_token_ids"]) + len(row["completion_token_ids"])

    async def run(self, engine: TeacherEngine, row: Row) -> Answer:
        """Capture one completion's signal."""
        from raystill.teacher.tier_capture import TierRequest
        from raystill.teacher.transformers_engine import TransformersEngine

        assert isinstance(engine, TransformersEngine)
        prompt, completion = (np.asarray(row[name], np.int32) for name in _COLUMNS[2:])
        signal = await engine.capture(TierRequest(row["key"], prompt, completion, self.kind, self.num_draws))
        return Answer(row, signal, len(completion))

    def commit(self, writer: PartWriter, partition: int, answers: Sequence[Answer]) -> None:
        """Commit signals, checked against their completions."""
        signals: list[tuple[str, TierSignal]] = []
        for answer in answers:
            assert isinstance(answer.result, SampledSignal | HiddenSignal)
            signals.append((answer.row["key"], answer.result))
        tokens = {
            answer.row["key"]: np.asarray(answer.row["completion_token_ids"], np.int32) for answer in answers
        }
        writer.commit_tier(partition, self.kind, signals, completion_token_ids=tokens)


def tier_work(config: Config) -> TierWork | None:
    """What `teacher.signals.kind` asks of the score stage; None for the top k."""
    kind = config.teacher.signals.kind
    return None if kind == "topk" else TierWork(kind, config.teacher.signals.num_draws)


def lack_tier(store: TeacherStore, work: TierWork, keys: Set[str]) -> bool:
    """Whether any row of `keys`, in ids or as text, has no signal of the tier."""
    return any(
        keys_without_tier(store, partition, work.kind, _width(work), with_texts=True) & keys
        for partition in range(store.num_partitions)
    )


def plan_tier(
    config: Config, store: TeacherStore, work: TierWork, keys: Set[str], scratch: Path, *, own_tokens: bool
) -> tuple[Shard, ...]:
    """Cut the rows of `keys` that lack the tier into shards under `scratch`.

    Rows in other tokens than the scorer's (all of them, unless `own_tokens`) take part with the ids that
    they were scored with; those that could not be scored don't.
    """
    writer = ShardWriter(scratch, "score", store.num_partitions)
    num_rows = 0
    for partition in range(store.num_partitions):
        wanted = keys_without_tier(store, partition, work.kind, _width(work), with_texts=True) & keys
        for row in scorer_rows(store, partition, wanted, own_tokens=own_tokens):
            writer.add(row)
            num_rows += 1
    size = shard_rows(config.teacher.store.rows_per_part, num_rows, 1)
    return tuple(
        shard for partition, table in writer.iter_partitions() for shard in writer.cut(partition, table, size)
    )


def scorer_rows(store: TeacherStore, partition: int, wanted: Set[str], *, own_tokens: bool) -> Iterator[Row]:
    """Rows in the scorer's tokens: as they were scored, or as it wrote them itself. Others are left out."""
    scored = load_scored_ids(store, partition) if wanted else {}
    for table in iter_tables(store, columns=_COLUMNS, keys=wanted, partitions=(partition,)):
        for row in table.to_pylist():
            ids = scored.get(row["key"])
            if ids is not None:
                row |= {name: getattr(ids, name).tolist() for name in _COLUMNS[2:]}
            if row["completion_token_ids"] and (own_tokens or ids is not None):
                yield row


def _width(work: TierWork) -> int:
    return work.num_draws if work.kind == "sampled" else 1


def tier_blueprint(teacher: KnownTeacher) -> EngineBlueprint:
    """The transformers engine for `teacher`, whatever engine generated: only it sees whole distributions."""
    exact = replace(teacher, facts=preflight(teacher.config, "transformers"))
    return exact.blueprint(num_logprobs=0, scoring=True)

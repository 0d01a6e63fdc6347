"""What a store holds, in numbers. Recomputed from the files, never from counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystill.store.commit import load_commits
from raystill.store.keys import Keys, first_occurrences
from raystill.store.layout import KINDS
from raystill.store.reader import committed_keys, iter_tables
from raystill.store.store import TeacherStore
from raystill.store.verify import list_uncommitted

MASS_EDGES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class StoreStats:
    """Counts of one store. Tokens are completion tokens unless the name says otherwise, an answer's own or
    its scorer's; prompts of answers that came as text have none. JSON-able.

    `captured_mass_histogram[i]` counts tokens whose stored top k holds a probability in
    [MASS_EDGES[i], MASS_EDGES[i + 1]); the last interval includes 1. `num_scored` keys have a signal, from
    generation or from the score stage. `cost_usd` is what all answers and rejects were billed. `num_rejects`
    and `rejects_by_code` leave out what succeeded later.
    """

    teacher: str
    teacher_id: str
    num_partitions: int
    num_parts: int
    num_rows: int
    num_scored: int
    num_rejects: int
    num_duplicates: int
    num_uncommitted: int
    num_tokens: int
    num_prompt_tokens: int
    size_bytes: int
    bytes_per_token: float
    cost_usd: float
    splits: dict[str, int]
    finish_reasons: dict[str, int]
    flags: dict[str, int]
    logprob_widths: dict[str, int]
    rejects_by_code: dict[str, int]
    captured_mass_mean: float | None
    captured_mass_histogram: tuple[int, ...]


@dataclass
class _Tally:
    """Running sums over a store's parts."""

    num_parts: int = 0
    size_bytes: int = 0
    num_duplicates: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    cost_usd: float = 0.0
    mass: float = 0.0
    mass_tokens: int = 0
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(MASS_EDGES) - 1, np.int64))
    splits: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    widths: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)

    def add_partition(self, store: TeacherStore, partition: int) -> None:
        """Count one partition; nothing of it stays in memory."""
        for kind in KINDS:
            commits = load_commits(store, partition, kind)
            self.num_parts += len(commits)
            self.size_bytes += sum(commit.size_bytes for commit in commits)
            if kind != "rejects":  # several of one key are its history
                keys = Keys.from_packed(*(commit.packed_keys for commit in commits))
                self.num_duplicates += int(np.count_nonzero(~first_occurrences(keys)))
            self.cost_usd += sum(commit.cost_usd for commit in commits)
        widths: dict[str, int] = {}
        texts: set[str] = set()
        for table in iter_tables(store, columns=_ROW_FACTS, partitions=(partition,)):
            self._add_rows(table)
            self._add_signals(table, widths)
            is_text = pc.equal(table.column("num_completion_tokens"), 0)
            texts.update(table.column("key").filter(is_text).to_pylist())
        for table in iter_tables(store, kind="scores", columns=_SIGNAL_FACTS, partitions=(partition,)):
            self._add_signals(table, widths)
            self._add_texts(table, texts)
        self.widths.update(str(width) for width in widths.values())
        self._add_rejects(store, partition, widths.keys())

    def _add_rejects(self, store: TeacherStore, partition: int, scored: Collection[str]) -> None:
        stored = committed_keys(store, partition)
        columns = ("key", "stage", "code")
        for table in iter_tables(store, kind="rejects", columns=columns, partitions=(partition,)):
            for key, stage, code in zip(*(table.column(name).to_pylist() for name in columns), strict=True):
                if key not in (scored if stage == "score" else stored):
                    self.codes[code] += 1

    def _add_rows(self, table: pa.Table) -> None:
        self.num_tokens += _total(table, "num_completion_tokens")
        self.num_prompt_tokens += _total(table, "num_prompt_tokens")
        self.splits.update(table.column("split").to_pylist())
        self.finish_reasons.update(table.column("finish_reason").to_pylist())
        self.flags.update(pc.list_flatten(table.column("flags")).to_pylist())

    def _add_texts(self, scores: pa.Table, texts: set[str]) -> None:
        """An answer that came as text has the tokens that its scorer found in it; each counts once."""
        lengths = pc.list_value_length(scores.column("tail_logprob")).to_pylist()
        for key, length in zip(scores.column("key").to_pylist(), lengths, strict=True):
            if key in texts:
                texts.remove(key)
                self.num_tokens += length

    def _add_signals(self, table: pa.Table, widths: dict[str, int]) -> None:
        counts = table.column("num_logprobs").to_pylist()
        for key, count in zip(table.column("key").to_pylist(), counts, strict=True):
            if count is not None:
                widths[key] = max(count, widths.get(key, 0))
        tail_T = pc.list_flatten(table.column("tail_logprob")).to_numpy()
        mass_T = np.clip(1.0 - np.exp(tail_T.astype(np.float64)), 0.0, 1.0)
        self.histogram += np.histogram(mass_T, bins=MASS_EDGES)[0]
        self.mass += float(mass_T.sum())
        self.mass_tokens += len(mass_T)


def compute_stats(store: TeacherStore) -> StoreStats:
    """Count everything, partition by partition. Raises DataError where a part is missing or damaged."""
    tally = _Tally()
    for partition in range(store.num_partitions):
        tally.add_partition(store, partition)
    return StoreStats(
        teacher=store.identity.teacher,
        teacher_id=store.identity.teacher_id,
        num_partitions=store.num_partitions,
        num_parts=tally.num_parts,
        num_rows=tally.splits.total(),
        num_scored=tally.widths.total(),
        num_rejects=tally.codes.total(),
        num_duplicates=tally.num_duplicates,
        num_uncommitted=len(list_uncommitted(store)),
        num_tokens=tally.num_tokens,
        num_prompt_tokens=tally.num_prompt_tokens,
        size_bytes=tally.size_bytes,
        bytes_per_token=tally.size_bytes / tally.num_tokens if tally.num_tokens else 0.0,
        cost_usd=tally.cost_usd,
        splits=dict(sorted(tally.splits.items())),
        finish_reasons=dict(sorted(tally.finish_reasons.items())),
        flags=dict(sorted(tally.flags.items())),
        logprob_widths=dict(sorted(tally.widths.items())),
        rejects_by_code=dict(sorted(tally.codes.items())),
        captured_mass_mean=tally.mass / tally.mass_tokens if tally.mass_tokens else None,
        captured_mass_histogram=tuple(tally.histogram.tolist()),
    )


def _total(table: pa.Table, name: str) -> int:
    return int(pc.sum(table.column(name)).as_py() or 0)


_SIGNAL_FACTS = ("key", "num_logprobs", "tail_logprob")
_ROW_FACTS = (
    *_SIGNAL_FACTS,
    "split",
    "finish_reason",
    "flags",
    "num_prompt_tokens",
    "num_completion_tokens",
)

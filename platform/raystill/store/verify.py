"""Recomputing everything a store claims. Reading only: what to do about damage is `quarantine`'s business."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from raystill.errors import DataError
from raystill.run.publish import TEMPORARY_PREFIX
from raystill.store.codec import iter_table_rejects, iter_table_rows, list_scores
from raystill.store.commit import live_commits
from raystill.store.commit_record import DIGEST_MODULUS, CommitRecord, list_commit_paths, load_commit
from raystill.store.digest import reject_digest, row_digest, score_digest
from raystill.store.identity import partition_of
from raystill.store.keys import pack_column
from raystill.store.layout import KINDS, kind_and_stem
from raystill.store.reader import read_part
from raystill.store.records import Int32Array
from raystill.store.selfcheck import check_rows, check_scores
from raystill.store.store import TeacherStore, load_store
from raystill.store.tier_codec import check_tier, list_tier_signals, num_positions, tier_digest


@dataclass(frozen=True)
class Damage:
    """A committed part that can't be used. `commit` is its record's path; `keys` are lost with it.

    `keys` is None where the record itself is unreadable, so that nobody knows.
    """

    commit: Path
    part: Path
    what: str
    keys: tuple[str, ...] | None


@dataclass(frozen=True)
class VerifyReport:
    """What `verify_store` found. A store is `ok` when every committed part is whole and right.

    `num_rows` counts distinct keys; `num_duplicates` are further rows of keys that are stored already, which
    readers leave out; `stray_scores` belong to no stored row; `uncommitted` files are what crashed writers
    left, or what a writer is writing right now. `answered_by` says whose answers these are.
    """

    path: Path
    answered_by: str
    num_parts: int
    num_rows: int
    num_scores: int
    num_rejects: int
    num_duplicates: int
    stray_scores: int
    damaged: tuple[Damage, ...]
    uncommitted: tuple[Path, ...]

    @property
    def ok(self) -> bool:
        """Nothing is damaged."""
        return not self.damaged

    @property
    def num_lost_keys(self) -> int:
        """Keys that must be asked again, as far as they are known."""
        return len({key for damage in self.damaged for key in damage.keys or ()})


def verify_store(path: Path) -> VerifyReport:
    """Check every part of the store at `path` against its commit and against itself. Never writes.

    Checksums, schemas, keys and their partitions, order-independent digests, every signal's self-check.
    Raises DataError only where store.json can't be read.
    """
    store = load_store(path)
    totals = dict.fromkeys(("parts", *KINDS, "duplicates", "stray"), 0)
    damaged: list[Damage] = []
    for partition in range(store.num_partitions):
        _verify_partition(store, partition, totals, damaged)
    return VerifyReport(
        path=path,
        answered_by=f"{store.identity.teacher} ({store.identity.engine})",
        num_parts=totals["parts"],
        num_rows=totals["rows"],
        num_scores=totals["scores"],
        num_rejects=totals["rejects"],
        num_duplicates=totals["duplicates"],
        stray_scores=totals["stray"],
        damaged=tuple(damaged),
        uncommitted=tuple(list_uncommitted(store)),
    )


def list_uncommitted(store: TeacherStore) -> list[Path]:
    """Parts without a commit and temporary files, of living and dead writers."""
    committed = {
        kind_and_stem(path.name)[1]
        for partition in range(store.num_partitions)
        for path in list_commit_paths(store, partition)
    }
    return [path for path in sorted(_files(store)) if _is_uncommitted(path, committed)]


@dataclass(frozen=True)
class _Tokens:
    """Completion ids by key: the rows' own, and those that the score stage gave to rows of other tokens."""

    rows: dict[str, Int32Array]
    scored: dict[str, Int32Array]


def _checking_order(commit: CommitRecord) -> int:
    return {"rows": 0, "scores": 1}.get(commit.kind, 2)


def _verify_partition(
    store: TeacherStore, partition: int, totals: dict[str, int], damaged: list[Damage]
) -> None:
    keys: dict[str, set[str]] = {kind: set() for kind in KINDS}
    tokens = _Tokens({}, {})
    commits: list[CommitRecord] = []
    for path in list_commit_paths(store, partition):
        try:
            commits.append(load_commit(path))
        except DataError as error:
            totals["parts"] += 1
            damaged.append(Damage(path, _part_of(store, partition, path), error.what, None))
    # Rows first: a score's sampled token is checked against its row; and tiers against the scores' ids.
    for commit in sorted(live_commits(commits), key=_checking_order):
        totals["parts"] += 1
        try:
            _verify_part(store, commit, partition, tokens)
        except DataError as error:
            damaged.append(Damage(commit.path(store), commit.part_path(store), str(error), commit.keys))
            continue
        totals["duplicates"] += sum(key in keys[commit.kind] for key in commit.keys)
        keys[commit.kind].update(commit.keys)
    for kind in KINDS:
        totals[kind] += len(keys[kind])
    totals["stray"] += len(keys["scores"] - keys["rows"])


def _verify_part(store: TeacherStore, commit: CommitRecord, partition: int, tokens: _Tokens) -> None:
    """Raises DataError for the first thing that is wrong; adds completions to `tokens`."""
    if commit.partition != partition:
        raise DataError(f"the commit says partition {commit.partition}")
    table = read_part(store, commit)
    if pack_column(table.column("key")) != commit.packed_keys:
        raise DataError("the part's keys are not those that were committed")
    for key in commit.keys:
        if partition_of(key, store.num_partitions) != partition:
            raise DataError(f"key {key} does not belong to partition {partition}")
    digests, num_tokens = _check_content(commit, table, tokens)
    if f"{digests % DIGEST_MODULUS:064x}" != commit.digest_sum or num_tokens != commit.num_tokens:
        raise DataError("the part's content is not what was committed")


def _check_content(commit: CommitRecord, table: pa.Table, tokens: _Tokens) -> tuple[int, int]:
    """The sum of digests and the number of tokens, after the self-checks."""
    if commit.kind == "rejects":
        return sum(map(reject_digest, iter_table_rejects(table))), 0
    if commit.kind == "sampled" or commit.kind == "hidden":
        tiers = list(zip(commit.keys, list_tier_signals(commit.kind, table), strict=True))
        check_tier(tiers, ChainMap(tokens.scored, tokens.rows))
        return sum(tier_digest(*each) for each in tiers), sum(num_positions(signal) for _, signal in tiers)
    if commit.kind == "scores":
        scores = list_scores(table)
        check_scores(scores, tokens.rows)
        tokens.scored.update(
            {score.key: score.ids.completion_token_ids.copy() for score in scores if score.ids is not None}
        )
        if {score.signal.num_logprobs for score in scores} != {commit.num_logprobs}:
            raise DataError(f"the signals are not of width {commit.num_logprobs}")
        num_tokens = sum(len(score.signal.sampled_logprob_T) for score in scores)
        return sum(map(score_digest, scores)), num_tokens
    rows = list(iter_table_rows(table))
    check_rows(rows)
    for row in rows:
        tokens.rows.setdefault(row.key, row.completion_token_ids.copy())
    return sum(map(row_digest, rows)), sum(len(row.completion_token_ids) for row in rows)


def _part_of(store: TeacherStore, partition: int, commit: Path) -> Path:
    kind, stem = kind_and_stem(commit.name)
    return next(
        (store.layout.part(known, partition, stem) for known in KINDS if known == kind),
        store.layout.part("rows", partition, stem),
    )


def _files(store: TeacherStore) -> Iterator[Path]:
    for partition in range(store.num_partitions):
        folders = [store.layout.parts(kind, partition) for kind in KINDS] + [store.layout.commits(partition)]
        for folder in folders:
            if folder.is_dir():
                yield from folder.iterdir()


def _is_uncommitted(path: Path, committed: set[str]) -> bool:
    if path.name.startswith(TEMPORARY_PREFIX):
        return True
    return path.suffix == ".parquet" and path.stem.removeprefix("part-") not in committed

"""What a store holds, in one digest: what later stages are made from, and what `resume` may rely on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection

import pyarrow as pa

from raystill.store.codec import iter_table_rejects, iter_table_rows, list_scores
from raystill.store.commit import kept_rows, load_commits
from raystill.store.commit_record import DIGEST_MODULUS
from raystill.store.digest import reject_digest, row_digest, score_digest
from raystill.store.layout import Kind
from raystill.store.reader import read_part
from raystill.store.store import TeacherStore
from raystill.store.tier_codec import list_tier_signals, tier_digest

_ROWS: tuple[Kind, ...] = ("rows",)


def content_digest(store: TeacherStore, kinds: Collection[Kind] = _ROWS) -> str:
    """Hex sha256 over the committed content of `kinds`, whatever the order and the cut into parts.

    Comes from the commit records alone, unless two writers have raced: then the part with the losing rows is
    read, and they are left out of the sum.
    """
    facts: dict[str, tuple[int, str]] = {}
    for kind in sorted(kinds):
        total, count = 0, 0
        for partition in range(store.num_partitions):
            commits = load_commits(store, partition, kind)
            for commit, kept in zip(commits, kept_rows(commits), strict=True):
                if kept is None:
                    total += int(commit.digest_sum, 16)
                    count += commit.num_rows
                else:
                    total += compute_digest_sum(kind, read_part(store, commit).take(pa.array(kept)))
                    count += len(kept)
        facts[kind] = (count, f"{total % DIGEST_MODULUS:064x}")
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()


def compute_digest_sum(kind: Kind, table: pa.Table) -> int:
    """The sum of the digests of a table's rows, rejects or scores."""
    if kind == "rows":
        return sum(map(row_digest, iter_table_rows(table)))
    if kind == "sampled" or kind == "hidden":
        tiers = zip(table.column("key").to_pylist(), list_tier_signals(kind, table), strict=True)
        return sum(tier_digest(key, signal) for key, signal in tiers)
    if kind == "rejects":
        return sum(map(reject_digest, iter_table_rejects(table)))
    return sum(map(score_digest, list_scores(table)))

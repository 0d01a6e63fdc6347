"""Repacking changes files, never content: whatever dies in between, and whoever reads meanwhile."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from store_builder import build_store, by_partition, make_reject, make_row, make_signal

from raystill.errors import EnvironmentFault
from raystill.run.publish import sha256_file
from raystill.store.commit import compute_spent_usd, load_commits
from raystill.store.commit_record import save_commit
from raystill.store.content import content_digest
from raystill.store.diff import diff_stores
from raystill.store.reader import iter_tables, load_rows, read_part
from raystill.store.records import ROW_SCHEMA, Score
from raystill.store.rejects import load_rejects
from raystill.store.repack import repack_store
from raystill.store.store import TeacherStore, load_store
from raystill.store.verify import list_uncommitted, verify_store
from raystill.store.writer import PartWriter

ROWS = [make_row(i, num_tokens=3) for i in range(24)]


def messy_store(path: Path) -> TeacherStore:
    """Small parts, keys that two writers stored differently, scores of two widths, rejects with a history."""
    store = build_store(path, ROWS, num_partitions=2, rows_per_part=3)
    with PartWriter(store) as writer:
        for partition, rows in by_partition(ROWS, 2).items():
            writer.commit_rows(partition, [replace(row, completion="too late") for row in rows[:4]])
            for width in (4, 6, 6):
                writer.commit_scores(
                    partition, [Score(row.key, make_signal(ROWS.index(row), 3, width)) for row in rows[:5]]
                )
            mine = [make_reject(i) for i in range(40, 60) if make_row(i).key in keys_of(store, partition, i)]
            for code in ("context", "timeout"):
                writer.commit_rejects(
                    partition, [replace(reject, code=code, cost_usd=0.25) for reject in mine]
                )
    return store


def written_before(store: TeacherStore) -> None:
    """Make the first part of partition 0 one whose lists say that entries may be missing."""
    commit = load_commits(store, 0, "rows")[0]
    table = read_part(store, commit)
    part = commit.part_path(store)
    pq.write_table(table, part, compression="zstd")
    assert pq.read_schema(part).types == ROW_SCHEMA.types
    facts = {"sha256": sha256_file(part), "size_bytes": part.stat().st_size}
    save_commit(store, commit.model_copy(update=facts))


def test_parts_of_an_older_version_are_read_and_merged_with_new_ones(tmp_path: Path) -> None:
    store = messy_store(tmp_path / "store")
    before = content(store)
    new_types = [pq.read_schema(commit.part_path(store)).types for commit in load_commits(store, 0, "rows")]
    assert ROW_SCHEMA.types not in new_types
    written_before(store)
    assert content(store) == before and verify_store(store.path).ok
    repack_store(store, rows_per_part=100)
    assert content(store) == before and verify_store(store.path).ok
    (commit,) = load_commits(store, 0, "rows")
    assert pq.read_schema(commit.part_path(store)).types in new_types


def keys_of(store: TeacherStore, partition: int, seed: int) -> set[str]:
    return {row.key for row in by_partition([make_row(seed)], store.num_partitions).get(partition, [])}


def content(store: TeacherStore) -> tuple[object, ...]:
    """All that a reader can see."""
    return (
        content_digest(store, ("rows", "scores", "rejects")),
        [(row.key, row.completion) for row in load_rows(store, with_signal=True, num_logprobs=4)],
        sorted(row["code"] for table in iter_tables(store, kind="rejects") for row in table.to_pylist()),
        [sorted(map(repr, load_rejects(store, partition))) for partition in range(2)],
        pytest.approx(compute_spent_usd(store)),
    )


def test_everything_becomes_one_part_per_kind_and_nothing_else_changes(tmp_path: Path) -> None:
    store, untouched = messy_store(tmp_path / "store"), messy_store(tmp_path / "same")
    before = content(store)
    done = repack_store(store, rows_per_part=100)
    assert content(store) == before
    assert done.dropped > 0 and done.bytes_after < done.bytes_before
    assert [len(load_commits(store, p, "rows")) for p in range(2)] == [1, 1]
    assert [len(load_commits(store, p, "rejects")) for p in range(2)] == [1, 1]
    report = verify_store(store.path)
    assert report.ok and report.num_duplicates == 0 and list_uncommitted(store) == []
    assert len(list((store.path / "partitions").rglob("*.parquet"))) == 2
    assert diff_stores(store, untouched).is_equal
    assert repack_store(store, rows_per_part=100).parts_before == done.parts_after


def test_parts_stay_below_the_limit_and_whole_parts_stay(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", ROWS, num_partitions=1, rows_per_part=4)
    repack_store(store, rows_per_part=10)
    assert [commit.num_rows for commit in load_commits(store, 0)] == [8, 8, 8]
    names = sorted(path.name for path in store.layout.commits(0).iterdir())
    repack_store(store, rows_per_part=10)
    assert sorted(path.name for path in store.layout.commits(0).iterdir()) == names


@pytest.mark.parametrize(
    "point",
    [
        "store:before_part",
        "publish_file:after_rename",
        "store:after_commit",
        "repack:committed",
        "repack:deleting",
    ],
)
def test_a_crash_leaves_one_version_and_the_next_repack_finishes(tmp_path: Path, point: str) -> None:
    store = messy_store(tmp_path / "store")
    before = content(store)
    for number in range(1, 9):
        child = os.fork()
        if child == 0:
            os.environ["RAYSTILL_FAILPOINT"] = f"{point}:{number}"
            repack_store(load_store(store.path), rows_per_part=100)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert content(store) == before
        assert verify_store(store.path).ok
        if not killed:
            break
    repack_store(store, rows_per_part=100)
    assert content(store) == before
    assert list_uncommitted(store) == [] and verify_store(store.path).num_duplicates == 0


def test_a_reader_that_began_before_reads_the_same_rows_to_the_end(tmp_path: Path) -> None:
    store = messy_store(tmp_path / "store")
    expected = sorted(row["key"] for table in iter_tables(store) for row in table.to_pylist())
    tables = iter_tables(store)
    seen = next(tables).column("key").to_pylist()
    stale = load_commits(store, 0, "rows")
    repack_store(store, rows_per_part=100)
    seen += [key for table in tables for key in table.column("key").to_pylist()]
    assert sorted(seen) == expected
    for commit in stale:
        assert tuple(read_part(store, commit, ["key"]).column("key").to_pylist()) == commit.keys


def test_nobody_writes_during_a_repack_and_nobody_repacks_while_one_writes(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", ROWS, num_partitions=1)
    with PartWriter(store), pytest.raises(EnvironmentFault, match=rf"process {os.getpid()} is writing"):
        repack_store(store, rows_per_part=100)
    from filelock import FileLock

    with FileLock(store.layout.repack_lock), pytest.raises(EnvironmentFault, match="being repacked"):
        PartWriter(store)
    assert repack_store(store, rows_per_part=100).parts_after == 1
    assert list(store.layout.writers.iterdir()) == []

"""verify recomputes everything and writes nothing; quarantine makes what is lost pending again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from store_builder import (
    IDENTITY,
    build_store,
    by_partition,
    commit_all,
    make_reject,
    make_row,
    make_signal,
)

from raystill.errors import DataError
from raystill.run.publish import sha256_file
from raystill.store.codec import rows_to_table
from raystill.store.commit import load_commits
from raystill.store.commit_record import save_commit
from raystill.store.content import content_digest
from raystill.store.keys import pack_keys
from raystill.store.reader import committed_keys, load_rows
from raystill.store.records import Score, TeacherRow
from raystill.store.repair import quarantine_damaged
from raystill.store.store import TeacherStore, open_store
from raystill.store.verify import verify_store
from raystill.store.writer import PartWriter, write_parquet


@pytest.fixture
def rows() -> list[TeacherRow]:
    return [make_row(i) for i in range(24)]


@pytest.fixture
def store(tmp_path: Path, rows: list[TeacherRow]) -> TeacherStore:
    return build_store(tmp_path / "store", rows, num_partitions=2, rows_per_part=5)


def snapshot(path: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in path.rglob("*")}


def test_a_whole_store_verifies_and_is_not_touched(store: TeacherStore, rows: list[TeacherRow]) -> None:
    with PartWriter(store) as writer:
        for partition, group in by_partition(rows, 2).items():
            writer.commit_rejects(partition, [make_reject(rows.index(group[0]))])
            writer.commit_scores(partition, [Score(group[0].key, make_signal(rows.index(group[0]), 6, 8))])
    before = snapshot(store.path)
    report = verify_store(store.path)
    assert snapshot(store.path) == before
    assert report.ok
    assert (report.num_rows, report.num_scores, report.num_rejects) == (24, 2, 2)
    assert (report.num_duplicates, report.stray_scores, report.uncommitted) == (0, 0, ())


def test_a_missing_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        verify_store(tmp_path)


def rewrite(store: TeacherStore, rows: list[TeacherRow], **changes: object) -> None:
    """Replace the first part of partition 0 and give the commit the new checksum: a consistent lie."""
    commit = load_commits(store, 0)[0]
    part = commit.part_path(store)
    write_parquet(rows_to_table(rows), part)
    updated = commit.model_copy(
        update={"sha256": sha256_file(part), "size_bytes": part.stat().st_size} | changes
    )
    save_commit(store, updated)


def test_content_that_differs_from_the_commit_is_found_even_with_a_right_checksum(
    store: TeacherStore, rows: list[TeacherRow]
) -> None:
    commit = load_commits(store, 0)[0]
    inside = [row for row in rows if row.key in commit.keys]
    inside.sort(key=lambda row: commit.keys.index(row.key))
    outside = next(row for row in rows if row.key in committed_keys(store, 1))

    rewrite(store, inside)
    assert verify_store(store.path).ok
    rewrite(store, [TeacherRow(**{**vars(row), "completion": "forged"}) for row in inside])
    assert "not what was committed" in verify_store(store.path).damaged[0].what
    rewrite(store, inside[::-1])
    assert "keys are not those" in verify_store(store.path).damaged[0].what
    rewrite(store, [outside], packed_keys=pack_keys([outside.key]), num_rows=1)
    assert "does not belong to partition 0" in verify_store(store.path).damaged[0].what


def test_a_signal_that_contradicts_its_row_is_found(store: TeacherStore, rows: list[TeacherRow]) -> None:
    commit = load_commits(store, 0)[0]
    inside = sorted((r for r in rows if r.key in commit.keys), key=lambda r: commit.keys.index(r.key))
    wrong = [TeacherRow(**{**vars(row), "signal": make_signal(999, 6, 4)}) for row in inside]
    rewrite(store, wrong)
    assert "own logprob" in verify_store(store.path).damaged[0].what


def test_another_files_format_is_found(store: TeacherStore) -> None:
    commit = load_commits(store, 0)[0]
    part = commit.part_path(store)
    pq.write_table(pq.read_table(part).drop_columns(["tail_logprob"]), part)
    save_commit(
        store, commit.model_copy(update={"sha256": sha256_file(part), "size_bytes": part.stat().st_size})
    )
    assert "columns" in verify_store(store.path).damaged[0].what


def test_a_renamed_or_moved_commit_is_found(store: TeacherStore) -> None:
    path = load_commits(store, 0)[0].path(store)
    path.rename(path.with_name("rows-0000000000000-1.aaaaaaaaaaaa-000001.commit"))
    assert not verify_store(store.path).ok


def test_quarantine_makes_lost_keys_pending_and_the_rest_stays(
    store: TeacherStore, rows: list[TeacherRow]
) -> None:
    whole = content_digest(store)
    lost_commits = [load_commits(store, 0)[0], load_commits(store, 1)[0], load_commits(store, 1)[1]]
    lost_commits[0].part_path(store).unlink()
    lost_commits[1].part_path(store).write_bytes(b"PAR1")
    lost_commits[2].path(store).write_text("{}", encoding="utf-8")
    lost = {key for commit in lost_commits for key in commit.keys}

    report = verify_store(store.path)
    assert len(report.damaged) == 3
    assert report.num_lost_keys == len(lost_commits[0].keys + lost_commits[1].keys)
    assert [damage.keys is None for damage in report.damaged].count(True) == 1
    with pytest.raises(DataError):
        load_rows(store)

    assert len(quarantine_damaged(store, report)) == 3
    assert {row.key for row in load_rows(store)} == {row.key for row in rows} - lost
    assert set().union(*(committed_keys(store, p) for p in range(2))) == {row.key for row in rows} - lost
    assert verify_store(store.path).ok

    commit_all(store, [row for row in rows if row.key in lost])
    assert content_digest(store) == whole
    kept = [path.name for path in store.layout.quarantine.rglob("*") if path.is_file()]
    assert len(kept) == 5  # three commits and two parts; one part was gone


def test_scores_of_a_lost_row_go_with_it(store: TeacherStore, rows: list[TeacherRow]) -> None:
    groups = by_partition(rows, 2)
    with PartWriter(store) as writer:
        for partition, group in groups.items():
            writer.commit_scores(
                partition, [Score(row.key, make_signal(rows.index(row), 6, 8)) for row in group]
            )
    load_commits(store, 0, "rows")[0].part_path(store).unlink()
    quarantine_damaged(store, verify_store(store.path))
    assert committed_keys(store, 0, "scores") == set()
    assert len(committed_keys(store, 1, "scores")) == len(groups[1])
    assert load_rows(store, with_signal=True)


def test_strays_and_leftovers_are_counted_but_are_no_damage(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 1)
    with PartWriter(store) as writer:
        writer.commit_scores(0, [Score(make_row(1).key, make_signal(1, 6, 4))])
        orphan = writer.commit_rows(0, [make_row(2)])
        orphan.path(store).unlink()
    (store.layout.commits(0) / ".tmp-x-rows.json").write_text(json.dumps({}), encoding="utf-8")
    report = verify_store(store.path)
    assert report.ok
    assert (report.num_rows, report.stray_scores, len(report.uncommitted)) == (0, 1, 2)

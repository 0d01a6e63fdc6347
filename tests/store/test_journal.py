"""An answer that was called durable is never lost, and never twice in the store."""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_builder import IDENTITY, make_reject, make_row, same_row

from raystill.errors import DataError, EnvironmentFault
from raystill.store.identity import partition_of
from raystill.store.journal import JournalWriter
from raystill.store.reader import iter_tables, load_rows
from raystill.store.records import Reject, TeacherRow
from raystill.store.recover import dead_journals, recover_journals
from raystill.store.store import TeacherStore, open_store
from raystill.store.verify import verify_store

PARTITIONS = 3


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    return open_store(tmp_path / "store", IDENTITY, PARTITIONS)


def append(journal: JournalWriter, record: TeacherRow | Reject) -> None:
    journal.append(partition_of(record.key, PARTITIONS), record).result(timeout=60)


def journals(store: TeacherStore) -> list[Path]:
    return sorted(store.layout.journals.glob("*.journal"))


def test_rows_and_rejects_come_back_whole_and_the_journal_is_gone(store: TeacherStore) -> None:
    rows = [make_row(i, num_tokens=i % 5, num_logprobs=None if i % 2 else 4) for i in range(30)]
    rows.append(replace(make_row(77), tool_calls='[{"a": 1}]', usage='{"total": 3}', cost_usd=0.1 + 0.2))
    rejects = [replace(make_reject(i), cost_usd=0.25, usage="{}") for i in range(100, 103)]
    with JournalWriter(store, group_seconds=0.01) as journal:
        futures = [journal.append(partition_of(r.key, PARTITIONS), r) for r in [*rows, *rejects]]
        journal.flush()
        assert all(future.done() for future in futures)
        assert len(journals(store)) == 1 and load_rows(store) == []  # readers never read journals
    expected = sorted(rows, key=lambda row: row.key)
    assert all(
        same_row(*pair) for pair in zip(load_rows(store, with_signal=False), plain(expected), strict=True)
    )
    found = {
        row.key: row
        for row in load_rows(store, keys={row.key for row in rows if row.signal}, with_signal=True)
    }
    assert all(same_row(found[row.key], row) for row in rows if row.signal is not None)
    stored = [reject for table in iter_tables(store, kind="rejects") for reject in table.to_pylist()]
    assert sorted(stored, key=lambda each: each["key"]) == sorted(
        map(vars, rejects), key=lambda each: each["key"]
    )
    assert journals(store) == [] and list(store.layout.writers.iterdir()) == []
    assert verify_store(store.path).ok


def plain(rows: list[TeacherRow]) -> list[TeacherRow]:
    return [replace(row, signal=None) for row in rows]


def test_what_could_not_become_a_part_is_refused_before_it_is_written(store: TeacherStore) -> None:
    row = make_row(1)
    assert row.signal is not None
    wrong = partition_of(row.key, PARTITIONS) + 1
    own = partition_of(row.key, PARTITIONS)
    with JournalWriter(store) as journal:
        with pytest.raises(DataError, match="does not belong"):
            journal.append(wrong % PARTITIONS, row)
        with pytest.raises(DataError, match="Unicode"):
            journal.append(own, replace(row, completion="\ud800"))
        with pytest.raises(DataError, match="finite"):
            journal.append(own, replace(row, cost_usd=float("nan")))
        with pytest.raises(DataError, match="sum to 1"):
            journal.append(
                own, replace(row, signal=replace(row.signal, tail_logprob_T=np.zeros(6, np.float32)))
            )
    with pytest.raises(RuntimeError, match="closed"):
        journal.append(own, row)
    assert load_rows(store) == []


def test_full_segments_become_parts_while_more_arrives(store: TeacherStore) -> None:
    rows = [make_row(i) for i in range(120)]
    with JournalWriter(store, group_rows=8, segment_bytes=4000) as journal:
        for row in rows:
            journal.append(partition_of(row.key, PARTITIONS), row)
        journal.flush()
        deadline = time.monotonic() + 60
        while not load_rows(store) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert load_rows(store)
    assert [row.key for row in load_rows(store)] == sorted(row.key for row in rows)
    assert verify_store(store.path).num_duplicates == 0


def test_an_answer_that_is_delivered_twice_is_one_row_and_a_reject_that_fails_twice_adds_up(
    store: TeacherStore,
) -> None:
    """F11."""
    row = make_row(1)
    reject = replace(make_reject(2), attempts=2, cost_usd=0.5)
    with JournalWriter(store) as journal:
        for record in (row, replace(row, completion="again"), reject, replace(reject, code="timeout")):
            append(journal, record)
    assert [found.completion for found in load_rows(store)] == [row.completion]
    (stored,) = [each for table in iter_tables(store, kind="rejects") for each in table.to_pylist()]
    assert (stored["code"], stored["attempts"], stored["cost_usd"]) == ("timeout", 4, 1.0)


def test_groups_are_flushed_together(store: TeacherStore, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = 0
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        nonlocal flushed
        flushed += "journal" in os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2]
        fsync(descriptor)

    with JournalWriter(store, group_rows=64, group_seconds=60.0) as journal:
        monkeypatch.setattr(os, "fsync", counted)
        futures = [journal.append(partition_of(make_row(i).key, PARTITIONS), make_row(i)) for i in range(128)]
        for future in futures:
            future.result(timeout=60)
        monkeypatch.setattr(os, "fsync", fsync)
    assert flushed <= 1 + 2 + 1  # two groups; the segment's folder once


def test_a_full_disk_stops_the_intake_and_nothing_is_lost_when_space_returns(
    store: TeacherStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F13."""
    full, refused = threading.Event(), threading.Event()
    full.set()
    pwrite = os.pwrite

    def write(descriptor: int, raw: bytes, offset: int) -> int:
        if full.is_set():
            if len(raw) > 10:
                return pwrite(descriptor, raw[: len(raw) // 2], offset)  # half of it fits
            refused.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, raw, offset)

    monkeypatch.setattr(os, "pwrite", write)
    with JournalWriter(store, group_rows=2, group_seconds=0.01) as journal:
        futures = [journal.append(partition_of(make_row(i).key, PARTITIONS), make_row(i)) for i in range(5)]
        assert refused.wait(60)
        deadline = time.monotonic() + 60
        while sum(path.stat().st_size for path in journals(store)):  # the half is taken back, every time
            assert time.monotonic() < deadline
        assert not any(future.done() for future in futures)
        full.clear()
        for future in futures:
            future.result(timeout=60)
    assert len(load_rows(store)) == 5


def test_answers_wait_until_the_parts_that_they_become_fit_too(
    store: TeacherStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F13."""
    free = 10 << 30
    monkeypatch.setattr("raystill.run.disk.free_bytes", lambda path: free)
    with JournalWriter(store, group_rows=1) as journal:
        append(journal, make_row(1))
        (segment,) = journals(store)
        size = segment.stat().st_size
        free = 2 * size  # one more answer would fit, and the part of both wouldn't
        future = journal.append(partition_of(make_row(2).key, PARTITIONS), make_row(2))
        with pytest.raises(TimeoutError):
            future.result(timeout=0.2)
        assert segment.stat().st_size == size
        free = 10 << 30
        future.result(timeout=60)
    assert len(load_rows(store)) == 2 and verify_store(store.path).ok


@pytest.mark.parametrize("fault", ["write", "fsync"])
def test_a_disk_that_fails_is_an_error_and_what_was_durable_is_kept(
    store: TeacherStore, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """F13, F40."""
    kept, failed = make_row(1), make_row(2)
    journal = JournalWriter(store, group_rows=1, full_disk_seconds=0.0)
    append(journal, kept)

    def fail(*arguments: object) -> int:
        raise OSError(errno.ENOSPC if fault == "write" else errno.EIO, "the disk says no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite" if fault == "write" else "fsync", fail)
        with pytest.raises(EnvironmentFault) as caught:
            append(journal, failed)
        assert caught.value.exit_code == 4
        with pytest.raises(EnvironmentFault):
            append(journal, failed)
    with pytest.raises(EnvironmentFault):
        journal.close()
    recover_journals(store)
    assert kept.key in {row.key for row in load_rows(store)} <= {kept.key, failed.key}
    assert dead_journals(store) == [] and verify_store(store.path).ok


def test_a_living_writers_journal_is_left_alone(store: TeacherStore) -> None:
    with JournalWriter(store, group_rows=1) as journal:
        append(journal, make_row(1))
        assert recover_journals(store).segments == 0 and len(journals(store)) == 1
    assert len(load_rows(store)) == 1

"""kill -9 anywhere, in recovery too: what was called durable is in the store once, after recovery."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from store_builder import IDENTITY, build_store, make_reject, make_row

from raystill.errors import DataError
from raystill.store.commit import compute_spent_usd
from raystill.store.identity import partition_of
from raystill.store.journal import JournalWriter
from raystill.store.journal_record import encode_head, encode_record
from raystill.store.reader import iter_tables, load_rows
from raystill.store.recover import dead_journals, prepare_store, recover_journals
from raystill.store.store import TeacherStore, load_store, open_store
from raystill.store.verify import list_uncommitted, verify_store

SCRIPT = Path(__file__).with_name("journal_victim.py")


def test_durable_answers_survive_every_failpoint_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=900, check=True
    )
    killed = json.loads(done.stdout)
    assert all(killed.values()), killed
    for place in sorted(tmp_path.iterdir()):
        durable = set((place / "durable.txt").read_text(encoding="ascii").split())
        store = load_store(place / "store")
        prepare_store(store)
        report = verify_store(store.path)
        assert report.ok and report.num_duplicates == 0
        rejects = [key for table in iter_tables(store, kind="rejects") for key in table["key"].to_pylist()]
        rows = [row.key for row in load_rows(store)]
        assert durable <= {*rows, *rejects}, place.name
        assert len(rows) == len(set(rows)) and len(rejects) == len(set(rejects))
        # At most what one group held was on its way: a row is appended when the one before is durable.
        assert len({*rows, *rejects} - durable) <= 1
        # Each row costs 0.001 once, however often its recovery was started.
        assert compute_spent_usd(store) == pytest.approx(0.001 * len(rows))
        assert dead_journals(store) == [] and list_uncommitted(store) == []
        assert recover_journals(store).segments == 0


def killed_writers_journal(store: TeacherStore, count: int = 12) -> Path:
    """A segment of `count` rows whose writer has died."""
    with JournalWriter(store) as journal:
        for seed in range(count):
            journal.append(partition_of(make_row(seed).key, store.num_partitions), make_row(seed))
        journal.flush()
        (path,) = store.layout.journals.glob("*.journal")
        raw = path.read_bytes()
    shutil.rmtree(store.path)
    open_store(store.path, IDENTITY, store.num_partitions)
    path.parent.mkdir()
    path.write_bytes(raw)
    return path


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    return open_store(tmp_path / "store", IDENTITY, 2)


def test_a_torn_tail_is_left_out_and_is_no_damage(store: TeacherStore) -> None:
    """F20."""
    path = killed_writers_journal(store)
    with path.open("ab") as stream:
        stream.write(encode_record(make_row(99))[:-7])
    found = recover_journals(store)
    assert (found.rows, found.lost, found.quarantined) == (12, (), ())
    assert not path.exists() and verify_store(store.path).ok


def test_damage_in_the_middle_costs_one_key_which_is_named_and_the_segment_is_kept(
    store: TeacherStore,
) -> None:
    """F20."""
    path = killed_writers_journal(store)
    raw = bytearray(path.read_bytes())
    victim = make_row(5)
    raw[raw.index(victim.completion.encode())] ^= 0x20
    path.write_bytes(raw)
    found = recover_journals(store)
    assert (found.rows, found.lost) == (11, (victim.key,))
    assert [place.name for place in found.quarantined] == [path.name] and found.quarantined[0].exists()
    assert victim.key not in {row.key for row in load_rows(store)}
    assert recover_journals(store).segments == 0


def test_a_foreign_or_newer_journal_is_refused_and_left(store: TeacherStore) -> None:
    path = killed_writers_journal(store)
    whole = path.read_bytes()
    foreign = encode_head("someone else") + whole[len(encode_head(IDENTITY.teacher_id)) :]
    path.write_bytes(foreign)
    with pytest.raises(DataError, match="answers of teacher someone else"):
        recover_journals(store)
    assert path.exists() and load_rows(store) == []


def test_an_answer_that_another_run_stored_meanwhile_is_not_stored_again(store: TeacherStore) -> None:
    killed_writers_journal(store)
    build_store(store.path, [make_row(3)], num_partitions=2)
    assert recover_journals(store).rows == 11
    assert verify_store(store.path).num_duplicates == 0


def test_a_reject_of_an_earlier_attempt_does_not_hide_the_journals(store: TeacherStore) -> None:
    reject = make_reject(1)
    own = partition_of(reject.key, 2)
    for _ in range(2):
        with JournalWriter(store) as journal:
            journal.append(own, reject)
    total = sum(table.num_rows for table in iter_tables(store, kind="rejects"))
    assert total == 1 and len(list(store.layout.commits(own).iterdir())) == 2
    assert os.listdir(store.layout.journals) == []

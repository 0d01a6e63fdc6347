"""A journal on S3: an answer that was called durable survives the machine, and is in the store once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_builder import IDENTITY, make_reject, make_row, same_row

from raystill.errors import EnvironmentFault
from raystill.run.remote import object_sizes, open_place, put_object
from raystill.store.claim import claim_store, release_store
from raystill.store.identity import partition_of
from raystill.store.journal import JournalWriter
from raystill.store.journal_segment import list_segments
from raystill.store.reader import committed_keys, iter_tables, load_rows
from raystill.store.recover import dead_journals, prepare_store, recover_journals
from raystill.store.store import TeacherStore, load_store, open_store
from raystill.store.verify import verify_store
from raystill.testing.object_storage import object_storage

VICTIM = Path(__file__).with_name("object_journal_victim.py")
PARTITIONS = 2
FAILPOINTS = [
    "journal:written:1",
    "journal:synced:1",
    "journal:written:3",
    "journal:synced:4",
    "publish_file:before_rename:3",  # in the middle of the parts
    "store:after_commit:1",
    "journal:before_delete:1",
]
OWNED = "journal:sealed:1"
ROWS = [make_row(number) for number in range(8)]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_storage() as address:
        yield address


def claimed(address: str, locks: Path) -> TeacherStore:
    return claim_store(open_store(open_place(address), IDENTITY, PARTITIONS), locks)


def stored(store: TeacherStore) -> set[str]:
    return {key for part in range(PARTITIONS) for key in committed_keys(store, part)}


def test_answers_come_back_whole_and_the_journal_is_gone(bucket: str, tmp_path: Path) -> None:
    store = claimed(f"{bucket}/whole", tmp_path / "locks")
    rejects = [make_reject(20), make_reject(21)]
    with JournalWriter(store, group_rows=3, group_seconds=0.01) as journal:
        for record in [*ROWS, *rejects]:
            journal.append(partition_of(record.key, PARTITIONS), record)
        journal.flush()
        (segment,) = list_segments(store)
        assert len(object_sizes(segment)) >= 3 and load_rows(store) == []  # readers never read journals
        assert dead_journals(store) == [] and recover_journals(store).segments == 0  # its writer lives
    assert list_segments(store) == []
    found = {row.key: row for row in load_rows(store, with_signal=True)}
    assert found.keys() == {row.key for row in ROWS}
    assert all(same_row(found[row.key], row) for row in ROWS)
    kept = [row["key"] for table in iter_tables(store, kind="rejects") for row in table.to_pylist()]
    assert sorted(kept) == sorted(reject.key for reject in rejects)
    assert list((tmp_path / "locks" / "writers").glob("*.lock")) == []


@pytest.fixture(scope="module")
def killed(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writers that died, by failpoint: a directory with their locks and the keys of durable answers."""
    places = tmp_path_factory.mktemp("killed")
    subprocess.run(
        [sys.executable, str(VICTIM), f"{bucket}/killed", str(places), *FAILPOINTS, OWNED], check=True
    )
    return places


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_killed_writer_s_answers_are_recovered_once(bucket: str, killed: Path, failpoint: str) -> None:
    store = claimed(f"{bucket}/killed/{failpoint}", killed / failpoint / "locks")
    prepare_store(store)
    recover_journals(store)
    keys = set((killed / failpoint / "durable.txt").read_text().split())
    # The group that was on its way may have arrived although nobody was told.
    assert keys <= stored(store) <= {row.key for row in ROWS} and len(stored(store)) <= len(keys) + 2
    assert list_segments(store) == []
    with JournalWriter(store) as journal:
        for row in ROWS:
            if row.key not in stored(store):
                journal.append(partition_of(row.key, PARTITIONS), row)
    report = verify_store(store.path)
    assert (report.ok, report.num_rows, report.num_duplicates) == (True, len(ROWS), 0)


def test_what_an_interrupted_deletion_leaves_is_recovered_to_nothing(bucket: str, tmp_path: Path) -> None:
    store = claimed(f"{bucket}/halfway", tmp_path / "locks")
    with JournalWriter(store, group_rows=2, group_seconds=60.0) as journal:
        for row in ROWS:
            journal.append(partition_of(row.key, PARTITIONS), row)
        journal.flush()
        (segment,) = list_segments(store)
        objects = {name: (segment / name).read_bytes() for name in object_sizes(segment)}
    assert len(objects) == 4
    for name in ("000000", "000002"):
        put_object(segment / name, objects[name], if_absent=True)
    found = recover_journals(store)
    assert (found.segments, found.rows, found.lost, list_segments(store)) == (1, 0, (), [])


def test_one_run_owns_the_store_until_its_journals_are_gone(
    bucket: str, killed: Path, tmp_path: Path
) -> None:
    address, locks = f"{bucket}/killed/{OWNED}", killed / OWNED / "locks"
    with pytest.raises(EnvironmentFault, match="another run's answers") as caught:
        claimed(address, tmp_path / "two")
    assert "owner.json" in caught.value.problems[0].fix
    # Who does not own it leaves its journals alone: their writers may live.
    assert recover_journals(load_store(open_place(address))).segments == 0
    first = claimed(address, locks)
    release_store(first)
    assert first.layout.owner_json.exists()  # a journal is left
    # The machine is gone for good, with its locks: nothing that was durable went with it.
    first.layout.owner_json.unlink()
    second = claimed(address, tmp_path / "two")
    assert recover_journals(second).rows == len(ROWS)
    release_store(second)
    assert not second.layout.owner_json.exists()
    third = claimed(address, tmp_path / "three")
    assert len(load_rows(third)) == len(ROWS)


def test_a_store_in_a_directory_is_nobody_s(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, PARTITIONS)
    assert claim_store(store, tmp_path / "locks") is store
    release_store(store)
    assert not (tmp_path / "locks").exists()

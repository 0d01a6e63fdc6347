"""A store on S3: what a directory promises, an address promises too, a killed writer included."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_builder import IDENTITY, build_store, make_reject, make_row, make_signal, same_signal

from raystill.errors import DataError, EnvironmentFault, RemoteError
from raystill.run.remote import is_remote, open_place, put_object
from raystill.store.commit_index import refresh_indexes
from raystill.store.content import content_digest
from raystill.store.export import export_jsonl
from raystill.store.identity import StoreIdentity
from raystill.store.pending import count_requests, iter_pending
from raystill.store.reader import committed_keys, iter_rows, keys_to_score, load_rows
from raystill.store.records import Score
from raystill.store.recover import prepare_store
from raystill.store.repack import repack_store
from raystill.store.repair import quarantine_damaged
from raystill.store.requests import Request, save_requests
from raystill.store.stats import compute_stats
from raystill.store.store import TeacherStore, load_store, open_store
from raystill.store.verify import list_uncommitted, verify_store
from raystill.store.writer import PartWriter
from raystill.testing.object_storage import object_storage

VICTIM = Path(__file__).with_name("object_victim.py")
ROWS = [make_row(number) for number in range(6)]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_storage() as address:
        yield address


def test_a_store_at_an_address_is_that_of_a_directory(bucket: str, tmp_path: Path) -> None:
    rows = [make_row(number, num_logprobs=None) for number in range(5)] + ROWS[5:]
    place = open_place(f"{bucket}/runs/one")
    store = build_store(place, rows, num_partitions=2, rows_per_part=2)
    twin = build_store(tmp_path / "store", rows, num_partitions=2, rows_per_part=2)
    scores = [Score(row.key, make_signal(number, 6, 4)) for number, row in enumerate(rows[:5])]
    for each in (store, twin):
        with PartWriter(each) as writer:
            for partition in range(2):
                pending = keys_to_score(each, partition, 4)
                own = [score for score in scores if score.key in pending]
                if own:
                    writer.commit_scores(partition, own)
    again = load_store(pickle.loads(pickle.dumps(store)).path)
    assert is_remote(again.path) and again.identity == IDENTITY
    assert content_digest(again) == content_digest(twin)
    found = {row.key: row.signal for row in load_rows(again, with_signal=True)}
    assert all(same_signal(found[row.key], make_signal(number, 6, 4)) for number, row in enumerate(ROWS))
    assert export_jsonl(again, tmp_path / "remote.jsonl") == export_jsonl(twin, tmp_path / "local.jsonl") == 6
    assert (tmp_path / "remote.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    report = verify_store(place)
    assert report.ok and report.num_rows == 6
    assert compute_stats(again).num_rows == compute_stats(twin).num_rows == 6
    with pytest.raises(EnvironmentFault, match="repacked"):
        repack_store(again, rows_per_part=3)


def test_what_is_answered_or_rejected_is_not_asked_again(bucket: str, tmp_path: Path) -> None:
    place = open_place(f"{bucket}/resume")
    store = build_store(place, ROWS[:4], num_partitions=2)
    with PartWriter(store) as writer:
        reject = make_reject(4)
        writer.commit_rejects(int(reject.key[0], 16) >> 3, [reject])
    table = tmp_path / "requests.parquet"
    save_requests(table, [Request(row.key, row.prompt_id, "train") for row in ROWS])
    prepare_store(store)
    census = count_requests(store, table)
    assert (census.stored, census.rejected, census.pending) == (4, 1, 1)
    (left,) = [key for _, rows in iter_pending(store, table) for key in rows.column("key").to_pylist()]
    assert left == ROWS[5].key


@pytest.mark.parametrize(
    ("failpoint", "committed"),
    [
        ("store:part_written:1", 0),
        ("publish_file:after_rename:1", 0),  # the part is there, its commit is not
        ("publish_file:before_rename:4", 3),
        ("publish_file:after_rename:4", 6),
    ],
)
def test_a_killed_writer_leaves_whole_parts_and_its_rows_are_written_once(
    bucket: str, failpoint: str, committed: int
) -> None:
    address = f"{bucket}/killed/{failpoint.replace(':', '-')}"
    victim = subprocess.run(
        [sys.executable, str(VICTIM), address],
        env={**os.environ, "RAYSTILL_FAILPOINT": failpoint},
        check=False,
    )
    assert victim.returncode == -signal.SIGKILL
    store = load_store(open_place(address))
    before = committed_keys(store, 0)
    assert before == {row.key for row in ROWS[:committed]}
    assert len(list(iter_rows(store))) == committed and verify_store(store.path).ok
    prepare_store(store)
    missing = [row for row in ROWS if row.key not in before]
    if missing:
        with PartWriter(store) as writer:
            writer.commit_rows(0, missing)
    report = verify_store(store.path)
    assert (report.ok, report.num_rows, report.num_duplicates) == (True, 6, 0)
    assert len(list_uncommitted(store)) == (failpoint == "publish_file:after_rename:1") + (committed == 3)


def test_of_writers_that_come_at_once_nobody_overwrites_another(bucket: str) -> None:
    place = open_place(f"{bucket}/race")
    names = [f"teacher {number}" for number in range(6)]

    def create(name: str) -> str | None:
        try:
            return open_store(place, replace_teacher(name), 2).identity.teacher
        except DataError:
            return None

    with ThreadPoolExecutor(6) as pool:
        found = {name for name in pool.map(create, names) if name is not None}
    assert found == {load_store(place).identity.teacher}
    put_object(place / "once", b"first", if_absent=True)
    put_object(place / "once", b"first", if_absent=True)  # its own request, sent again
    with pytest.raises(FileExistsError):
        put_object(place / "once", b"second", if_absent=True)
    assert (place / "once").read_bytes() == b"first"


def test_damage_is_found_and_set_aside(bucket: str) -> None:
    store = build_store(open_place(f"{bucket}/damaged"), ROWS, num_partitions=1, rows_per_part=3)
    lost, changed = sorted(store.layout.parts("rows", 0).iterdir())
    lost.unlink()
    with pytest.raises(DataError, match="missing"):
        count_rows(store)
    put_object(changed, b"x" * changed.stat().st_size, if_absent=False)
    report = verify_store(store.path)
    assert len(report.damaged) == 2
    quarantine_damaged(store, report)
    assert committed_keys(store, 0) == set() and verify_store(store.path).ok


def test_indexes_spare_the_reading_of_commits(bucket: str) -> None:
    rows = [make_row(number, num_logprobs=None) for number in range(66)]
    store = build_store(open_place(f"{bucket}/indexed"), rows, num_partitions=1, rows_per_part=1)
    assert refresh_indexes(store) == 1 and refresh_indexes(store) == 0
    assert committed_keys(store, 0) == {row.key for row in rows}


def test_a_wrong_bucket_or_endpoint_is_named_with_the_repair(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RemoteError, match="storage refuses") as caught:
        open_store(open_place("s3://there-is-no-such-bucket/store"), IDENTITY, 2)
    assert "AWS_ENDPOINT_URL" in caught.value.problems[0].fix


def replace_teacher(name: str) -> StoreIdentity:
    return IDENTITY.model_copy(update={"teacher": name})


def count_rows(store: TeacherStore) -> int:
    from raystill.store.reader import stored_keys

    stored_keys(store, 0)
    return len(list(iter_rows(store)))

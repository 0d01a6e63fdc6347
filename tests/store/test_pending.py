"""The anti-join: exactly the requests that nothing has answered, whatever the store's parts and indexes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_builder import build_store, make_reject, make_row

from raystill.errors import DataError
from raystill.store.commit_index import load_index, refresh_indexes
from raystill.store.identity import partition_of
from raystill.store.keys import Keys, KeySet, first_occurrences, pack_keys, unpack_keys
from raystill.store.known_keys import KnownKeys
from raystill.store.pending import count_requests, iter_pending
from raystill.store.reader import committed_keys, iter_tables, load_rows
from raystill.store.rejects import load_rejects, release_rejects
from raystill.store.requested_keys import RequestedKeys
from raystill.store.requests import Request, RequestTableWriter, load_request_keys, save_requests
from raystill.store.store import TeacherStore
from raystill.store.writer import PartWriter

KEYS = st.lists(st.integers(0, 3).map(lambda high: f"{high:016x}") | st.just("f" * 16), max_size=12)


def pending(store: TeacherStore, table: Path) -> set[str]:
    return {key for _, rows in iter_pending(store, table) for key in rows.column("key").to_pylist()}


def requests(seeds: range) -> list[Request]:
    return [Request(make_row(seed).key, f"prompt-{seed}", "train") for seed in seeds]


@pytest.mark.parametrize("partitions", [1, 3, 8])
def test_prompts_added_removed_and_reordered(tmp_path: Path, partitions: int) -> None:
    store = build_store(tmp_path / "store", [make_row(i) for i in range(40)], num_partitions=partitions)
    table = tmp_path / "requests.parquet"
    save_requests(table, reversed(requests(range(20, 55))))
    assert pending(store, table) == {make_row(i).key for i in range(40, 55)}
    for partition, rows in iter_pending(store, table):
        assert {partition_of(key, partitions) for key in rows["key"].to_pylist()} == {partition}
    census = count_requests(store, table)
    assert (census.requests, census.stored, census.rejected, census.pending) == (35, 20, 0, 15)


def test_a_reject_is_not_asked_again_until_it_is_released_and_its_attempts_add_up(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(i) for i in range(3)], num_partitions=1)
    table = tmp_path / "requests.parquet"
    save_requests(table, requests(range(6)))
    first = replace(make_reject(3), attempts=2, cost_usd=0.5)
    with PartWriter(store) as writer:
        writer.commit_rejects(0, [first, replace(make_reject(4), code="timeout"), make_reject(0)])
    assert pending(store, table) == {make_row(5).key}
    assert count_requests(store, table).rejected == 2
    assert release_rejects(store, ["context"]) == 1  # of key 0 there is an answer
    assert pending(store, table) == {make_row(3).key, make_row(5).key}
    assert {row["code"] for t in iter_tables(store, kind="rejects") for row in t.to_pylist()} == {
        "context",
        "timeout",
    }
    with PartWriter(store) as writer:
        writer.commit_rejects(0, [replace(first, code="timeout", attempts=3)])
    assert pending(store, table) == {make_row(5).key}
    (known,) = [reject for reject in load_rejects(store, 0) if reject.key == first.key]
    assert (known.code, known.attempts, known.cost_usd) == ("timeout", 5, 1.0)


def test_an_index_changes_no_answer_and_a_broken_or_stale_one_neither(tmp_path: Path) -> None:
    rows = [make_row(i) for i in range(70)]
    store = build_store(tmp_path / "store", rows, num_partitions=1, rows_per_part=1)
    assert refresh_indexes(store) == 1 and refresh_indexes(store) == 0
    assert len(load_index(store, 0)) == 70
    build_store(store.path, [make_row(99)], num_partitions=1)  # newer than the index
    gone = next(store.layout.commits(0).iterdir())
    lost = next(row.key for row in rows if pack_keys([row.key]) in gone.read_bytes())
    gone.unlink()  # the index still has it
    expected = {row.key for row in [*rows, make_row(99)]} - {lost}
    assert committed_keys(store, 0) == expected
    index = store.layout.commit_index(0)
    whole = index.read_bytes()
    for broken in (b"", b"{}", whole[:-1], whole[:3000] + b"?" + whole[3001:], b"\xff" * 50):
        index.write_bytes(broken)
        assert committed_keys(store, 0) == expected
    assert len(load_rows(store)) == 70


def test_a_table_that_is_missing_or_not_sorted_is_refused(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(1)])
    with pytest.raises(DataError, match="requests can't be read"):
        count_requests(store, tmp_path / "none.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="requests can't be read"):
        count_requests(store, tmp_path / "torn.parquet")


def test_a_table_written_in_pieces_is_published_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    save_requests(tmp_path / "one.parquet", requests(range(9)))
    table = __import__("pyarrow.parquet").parquet.read_table(tmp_path / "one.parquet")
    with pytest.raises(ValueError, match="comes after"), RequestTableWriter(path) as writer:
        writer.add(table.slice(5))
        writer.add(table.slice(0, 5))
    assert not path.exists()
    with RequestTableWriter(path) as writer:
        writer.add(table.slice(0, 5))
        writer.add(table.slice(5))
    assert load_request_keys(path) == {request.key for request in requests(range(9))}


@given(KEYS, KEYS, st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_key_sets_agree_with_pythons(left: list[str], right: list[str], salt: int) -> None:
    """Halves that collide, and halves whose sum does."""
    have = [high + f"{(salt + number % 3) % 2**64:016x}" for number, high in enumerate(left)]
    want = [high + f"{(salt + number % 4) % 2**64:016x}" for number, high in enumerate(right)]
    assert unpack_keys(pack_keys(have)) == tuple(have)
    found = KeySet(Keys.from_names(have)).contains(Keys.from_names(want))
    assert found.tolist() == [key in set(have) for key in want]
    first = first_occurrences(Keys.from_names(have))
    assert first.tolist() == [key not in have[:place] for place, key in enumerate(have)]


@given(st.integers(1, 4096))
@settings(deadline=None)
def test_partition_edges_agree_with_partition_of(num_partitions: int) -> None:
    rng = np.random.default_rng(num_partitions)
    names = sorted(rng.bytes(16).hex() for _ in range(50))
    edges = Keys.from_names(names).partition_edges(num_partitions)
    for partition in {partition_of(name, num_partitions) for name in names}:
        own = names[edges[partition] : edges[partition + 1]]
        assert own == [name for name in names if partition_of(name, num_partitions) == partition]


def test_requested_keys_are_a_set_of_names(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    save_requests(path, requests(range(40)))
    named = {request.key for request in requests(range(40))}
    keys = RequestedKeys(path, 3)
    assert (len(keys), set(keys)) == (40, named)
    others = {make_row(index).key for index in range(30, 60)}
    assert others & keys == keys & others == others & named
    assert make_row(0).key in keys and make_row(50).key not in keys


@given(st.lists(st.lists(st.integers(0, 60), max_size=25), max_size=8), st.integers(1, 5))
@settings(deadline=None, max_examples=8)
def test_known_keys_are_new_once(batches: list[list[int]], num_partitions: int) -> None:
    with TemporaryDirectory() as directory:
        store = build_store(
            Path(directory) / "store", [make_row(index) for index in range(9)], num_partitions=num_partitions
        )
        known, seen = KnownKeys(store), {make_row(index).key for index in range(9)}
        for batch in batches:
            names = [make_row(index).key for index in batch]
            expected = []
            for name in names:
                expected.append(name not in seen)
                seen.add(name)
            assert known.add_new(names).tolist() == expected

"""Readers see every committed row once, whole, from whichever part; and refuse what they can't trust."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_builder import (
    IDENTITY,
    build_store,
    by_partition,
    commit_all,
    make_reject,
    make_row,
    make_signal,
    same_row,
    same_signal,
)

from raystill.errors import DataError
from raystill.store.codec import view_signal
from raystill.store.reader import (
    committed_keys,
    iter_rows,
    iter_tables,
    keys_to_score,
    load_rows,
    unscored_keys,
)
from raystill.store.records import Score, TeacherRow
from raystill.store.store import TeacherStore, open_store
from raystill.store.verify import verify_store
from raystill.store.writer import PartWriter


@pytest.fixture(scope="module")
def rows() -> list[TeacherRow]:
    return [make_row(i, num_tokens=i % 7, split="eval" if i % 5 == 0 else "train") for i in range(40)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, rows: list[TeacherRow]) -> TeacherStore:
    return build_store(tmp_path_factory.mktemp("reader") / "store", rows, num_partitions=5, rows_per_part=3)


def test_every_row_comes_back_whole(store: TeacherStore, rows: list[TeacherRow]) -> None:
    expected = sorted(rows, key=lambda row: row.key)
    found = load_rows(store, with_signal=True)
    assert [row.key for row in found] == [row.key for row in expected]
    assert all(same_row(*pair) for pair in zip(found, expected, strict=True))


def test_without_signals_only_the_signal_is_left_out(store: TeacherStore, rows: list[TeacherRow]) -> None:
    expected = sorted((replace(row, signal=None) for row in rows), key=lambda row: row.key)
    assert all(same_row(*pair) for pair in zip(load_rows(store), expected, strict=True))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_any_way_to_share_the_partitions_gives_the_same_rows(
    store: TeacherStore, rows: list[TeacherRow], owners: list[int]
) -> None:
    seen = [
        row.key
        for worker in range(4)
        for row in iter_rows(store, partitions=[p for p, owner in enumerate(owners) if owner == worker])
    ]
    assert sorted(seen) == sorted(row.key for row in rows)


def test_only_the_asked_keys_are_read(store: TeacherStore, rows: list[TeacherRow]) -> None:
    wanted = {row.key for row in rows[::3]}
    assert {row.key for row in iter_rows(store, keys=wanted)} == wanted
    assert list(iter_rows(store, keys=[])) == []
    tables = list(iter_tables(store, columns=["split"], keys=wanted))
    assert {name for table in tables for name in table.column_names} == {"split"}
    assert sum(table.num_rows for table in tables) == len(wanted)


def test_committed_keys_are_those_of_the_partition(store: TeacherStore, rows: list[TeacherRow]) -> None:
    for partition, group in by_partition(rows, 5).items():
        assert committed_keys(store, partition) == {row.key for row in group}
    with pytest.raises(DataError, match="partition 5 of a store with 5"):
        committed_keys(store, 5)


def test_a_view_is_cut_from_what_is_stored(store: TeacherStore) -> None:
    whole = load_rows(store, with_signal=True)
    for row, cut in zip(whole, load_rows(store, with_signal=True, num_logprobs=2), strict=True):
        assert row.signal is not None
        assert same_signal(cut.signal, view_signal(row.signal, 2))
    with pytest.raises(DataError, match="9 logprobs per token are asked for, 4 are stored"):
        load_rows(store, with_signal=True, num_logprobs=9)


def test_rows_without_a_signal_are_refused_where_one_is_needed(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(1), make_row(2, num_logprobs=None)])
    with pytest.raises(DataError, match="1 stored rows have no teacher signal") as caught:
        load_rows(store, with_signal=True)
    assert make_row(2).key in str(caught.value)
    assert "raystill score" in str(caught.value)


def test_scores_join_their_rows_and_the_wider_signal_counts(tmp_path: Path) -> None:
    originals = [make_row(i, num_tokens=5, num_logprobs=[None, 4, 8][i % 3]) for i in range(12)]
    store = build_store(tmp_path / "store", originals, num_partitions=2)
    pending = {p: keys_to_score(store, p, 6) for p in range(2)}
    assert set().union(*pending.values()) == {row.key for i, row in enumerate(originals) if i % 3 != 2}
    with PartWriter(store) as writer:
        for partition, group in by_partition(originals, 2).items():
            for width in (3, 6):  # an older, narrower score loses
                signals = [Score(row.key, make_signal(originals.index(row), 5, width)) for row in group]
                writer.commit_scores(partition, signals)
    assert [keys_to_score(store, p, 6) for p in range(2)] == [set(), set()]
    assert set().union(*(keys_to_score(store, p, 7) for p in range(2))) == set().union(*pending.values())
    found = {row.key: row for row in load_rows(store, with_signal=True)}
    for i, row in enumerate(originals):
        assert same_signal(found[row.key].signal, make_signal(i, 5, 8 if i % 3 == 2 else 6))
    assert len(load_rows(store, with_signal=True, num_logprobs=6)) == 12
    assert verify_store(store.path).ok


def test_a_row_that_the_score_stage_rejected_is_left_out_until_it_is_scored(tmp_path: Path) -> None:
    originals = [make_row(1), make_row(2, num_logprobs=None), make_row(3, num_logprobs=None)]
    store = build_store(tmp_path / "store", originals, num_partitions=1)
    with PartWriter(store) as writer:
        writer.commit_rejects(0, [make_reject(2, "score"), make_reject(3, "generate")])
        assert unscored_keys(store, 0) == {originals[1].key}
        with pytest.raises(DataError, match="1 stored rows have no teacher signal"):
            load_rows(store, with_signal=True)  # the third: generated at the second attempt, not yet scored
        writer.commit_scores(0, [Score(originals[2].key, make_signal(3, 6, 4))])
        assert {row.prompt_id for row in load_rows(store, with_signal=True)} == {
            "prompt-00001",
            "prompt-00003",
        }
        assert len(load_rows(store)) == 3
        writer.commit_scores(0, [Score(originals[1].key, make_signal(2, 6, 4))])
    assert unscored_keys(store, 0) == set()
    assert len(load_rows(store, with_signal=True)) == 3


def test_a_row_without_tokens_needs_no_score(tmp_path: Path) -> None:
    rows = [make_row(1), replace(make_row(2, num_tokens=0, num_logprobs=None), completion="")]
    store = build_store(tmp_path / "store", rows, num_partitions=1)
    assert keys_to_score(store, 0, 4) == set()
    found = {row.prompt_id: row.signal for row in iter_rows(store, with_signal=True)}
    assert {name: signal and signal.topk_ids_TK.shape for name, signal in found.items()} == {
        "prompt-00001": (6, 4),
        "prompt-00002": (0, 4),
    }
    cut = load_rows(store, with_signal=True, num_logprobs=2)
    assert [row.signal.num_logprobs for row in cut if row.signal] == [2, 2]


def test_a_score_of_another_completion_is_refused(tmp_path: Path) -> None:
    row = make_row(1, num_tokens=30, num_logprobs=None)
    store = build_store(tmp_path / "store", [row], num_partitions=1)
    with PartWriter(store) as writer:
        writer.commit_scores(0, [Score(row.key, make_signal(2, 30, 4))])
    with pytest.raises(DataError, match="own logprob"):
        load_rows(store, with_signal=True)
    assert not verify_store(store.path).ok
    assert len(load_rows(store)) == 1


def test_only_committed_parts_are_seen(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(i) for i in range(6)], num_partitions=1)
    for commit in list(store.layout.commits(0).iterdir())[:1]:
        commit.unlink()
    (store.layout.parts("rows", 0) / ".tmp-abc-part.parquet").write_bytes(b"half")
    (store.layout.commits(0) / ".tmp-abc-rows.json").write_bytes(b"half")
    assert len(load_rows(store)) in (2, 4)


def first_part(store: TeacherStore) -> Path:
    return sorted((store.path / "partitions").rglob("*.parquet"))[0]


def test_a_missing_part_is_named_with_its_keys(tmp_path: Path) -> None:
    """F34."""
    store = build_store(tmp_path / "store", [make_row(i) for i in range(4)], num_partitions=1)
    part = first_part(store)
    part.unlink()
    for read in (lambda: load_rows(store), lambda: committed_keys(store, 0)):
        with pytest.raises(DataError, match="it is missing; 4 keys must be asked again") as caught:
            read()
        assert str(part) in str(caught.value)
        assert caught.value.exit_code == 3


def test_every_flipped_byte_and_every_truncation_is_noticed(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(i) for i in range(4)], num_partitions=1)
    rng = random.Random(0)
    for path in (first_part(store), next(store.layout.commits(0).iterdir())):
        whole = path.read_bytes()
        for number in range(50):
            offset = rng.randrange(len(whole))
            if number % 2:
                damaged = (
                    whole[:offset] + bytes([whole[offset] ^ (1 << rng.randrange(8))]) + whole[offset + 1 :]
                )
            else:
                damaged = whole[:offset]
            path.write_bytes(damaged)
            with pytest.raises(DataError):
                load_rows(store)
            report = verify_store(store.path)
            assert not report.ok
            assert report.damaged[0].part == first_part(store)
        path.write_bytes(whole)
        assert verify_store(store.path).ok
    assert len(load_rows(store)) == 4


def test_an_unknown_codec_or_format_is_refused_by_name(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(1)], num_partitions=1)
    path = next(store.layout.commits(0).iterdir())
    head, _, keys = path.read_bytes().partition(b"\n")
    facts = json.loads(head)
    for change in ({"codec": "hidden-bf16-v1"}, {"format_version": 7, "surprise": 1}):
        path.write_bytes(json.dumps(facts | change).encode() + b"\n" + keys)
        with pytest.raises(DataError, match=r"hidden-bf16-v1|format version 7"):
            load_rows(store)


def test_rejects_are_no_rows(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 2)
    rejects = [make_reject(i) for i in range(6)]
    with PartWriter(store) as writer:
        for partition in range(2):
            writer.commit_rejects(partition, [r for r in rejects if r.key in keys_of(partition)])
    assert load_rows(store) == []
    assert set().union(*(committed_keys(store, p, "rejects") for p in range(2))) == {r.key for r in rejects}


def keys_of(partition: int) -> set[str]:
    return {row.key for row in by_partition([make_row(i) for i in range(6)], 2).get(partition, [])}


def test_an_empty_store_reads_as_empty(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 4)
    assert load_rows(store, with_signal=True) == []
    assert committed_keys(store, 3) == set()
    commit_all(store, [])
    assert verify_store(store.path).ok


def test_arrays_are_views_that_nobody_can_write_through(store: TeacherStore) -> None:
    row = next(row for row in iter_rows(store, with_signal=True) if len(row.completion_token_ids))
    assert row.signal is not None
    assert row.signal.topk_ids_TK.base is not None
    with pytest.raises(ValueError, match="read-only"):
        row.signal.topk_ids_TK[0, 0] = 1
    assert row.completion_token_ids.dtype == np.int32

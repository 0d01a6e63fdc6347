"""What may be committed, and what a commit says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
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
    same_row,
    sampled_tokens,
)

from raystill.errors import DataError, EnvironmentFault
from raystill.run.publish import sha256_file
from raystill.store.codec import rows_to_table
from raystill.store.commit import load_commits
from raystill.store.content import content_digest
from raystill.store.reader import committed_keys, iter_rows, load_rows
from raystill.store.records import Score, TopKSignal
from raystill.store.store import open_store
from raystill.store.verify import list_uncommitted, verify_store
from raystill.store.writer import PartWriter


def files(path: Path) -> list[str]:
    return sorted(item.name for item in path.rglob("*") if item.is_file())


def test_a_commit_names_the_part_and_what_it_holds(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 1)
    rows = [make_row(i, num_tokens=i) for i in range(4)]
    with PartWriter(store) as writer:
        record = writer.commit_rows(0, rows)
    part = record.part_path(store)
    assert load_commits(store, 0) == [record]
    assert (record.size_bytes, record.sha256) == (part.stat().st_size, sha256_file(part))
    assert record.keys == tuple(row.key for row in rows)
    assert record.num_tokens == 0 + 1 + 2 + 3
    assert store.path / "partitions" / "p0000" == part.parent


def test_parts_are_plain_parquet_with_the_promised_encodings(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(i, num_tokens=40) for i in range(8)], num_partitions=1)
    part = next((store.path / "partitions").rglob("*.parquet"))
    columns = pq.ParquetFile(part).metadata.row_group(0)
    found = {columns.column(i).path_in_schema: columns.column(i) for i in range(columns.num_columns)}
    for name in ("topk_ids", "topk_logprobs", "sampled_logprob", "tail_logprob"):
        column = found[f"{name}.list.element"]
        assert ("BYTE_STREAM_SPLIT" in column.encodings) == (name != "topk_logprobs")
        assert "RLE_DICTIONARY" not in column.encodings
    assert {column.compression for column in found.values()} == {"ZSTD"}
    frame = pq.read_table(part).to_pydict()
    assert frame["num_completion_tokens"] == [40] * 4
    assert frame["topk_ids"][0] == make_row_of(frame["key"][0])


def make_row_of(key: str) -> list[int]:
    signal = next(row.signal for row in (make_row(i, num_tokens=40) for i in range(8)) if row.key == key)
    assert signal is not None
    return [int(i) for i in signal.topk_ids_TK.reshape(-1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, topk_logprobs_TK=s.topk_logprobs_TK[:, ::-1]), "not sorted"),
        (lambda s: replace(s, topk_ids_TK=s.topk_ids_TK * 0), "stands twice"),
        (lambda s: replace(s, topk_ids_TK=s.topk_ids_TK - 60), "negative"),
        (lambda s: replace(s, tail_logprob_T=s.tail_logprob_T + 1.0), "do not sum to 1"),
        (lambda s: replace(s, tail_logprob_T=s.tail_logprob_T * np.nan), "NaN"),
        (lambda s: replace(s, topk_logprobs_TK=s.topk_logprobs_TK * np.float16("inf")), "not finite"),
        (lambda s: replace(s, sampled_logprob_T=s.sampled_logprob_T - 0.1), "own logprob"),
        (lambda s: replace(s, sampled_logprob_T=s.sampled_logprob_T * np.float32("inf")), "not finite"),
        (lambda s: TopKSignal(*(np.roll(a, 1, axis=0) for a in vars(s).values())), "own logprob"),
        (lambda s: TopKSignal(*(a[:-1] for a in vars(s).values())), "19 positions for 20"),
    ],
)
def test_a_signal_that_contradicts_its_row_is_refused_and_nothing_is_written(
    tmp_path: Path, change: Callable[[TopKSignal], TopKSignal], message: str
) -> None:
    """F22: a teacher's logits, among others."""
    store = open_store(tmp_path / "store", IDENTITY, 1)
    good, bad = make_row(1, num_tokens=20), make_row(2, num_tokens=20)
    assert bad.signal is not None
    with PartWriter(store) as writer:
        before = files(store.path)
        with pytest.raises(DataError, match=message) as caught:
            writer.commit_rows(0, [good, replace(bad, signal=change(bad.signal))])
        assert bad.key in str(caught.value)
        assert files(store.path) == before
        writer.commit_rows(0, [good, bad])
    assert committed_keys(store, 0) == {good.key, bad.key}


def test_a_sampled_token_outside_the_top_k_may_not_be_likelier_than_the_k_th(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 1)
    row = make_row(3, num_tokens=30, num_logprobs=2)
    signal = row.signal
    assert signal is not None
    outside = ~(signal.topk_ids_TK == row.completion_token_ids[:, None]).any(axis=1)
    assert outside.any(), "the case must occur"
    raised = np.where(outside, -0.001, signal.sampled_logprob_T).astype(np.float32)
    with PartWriter(store) as writer:
        with pytest.raises(DataError, match="own logprob"):
            writer.commit_rows(0, [replace(row, signal=replace(signal, sampled_logprob_T=raised))])
        writer.commit_rows(0, [row])


def test_scores_are_checked_against_the_completion_where_it_is_given(tmp_path: Path) -> None:
    row = make_row(1, num_tokens=20, num_logprobs=None)
    store = build_store(tmp_path / "store", [row], num_partitions=1)
    foreign = make_signal(2, 20, 4)
    with PartWriter(store) as writer:
        with pytest.raises(DataError, match="own logprob"):
            writer.commit_scores(
                0, [Score(row.key, foreign)], completion_token_ids={row.key: row.completion_token_ids}
            )
        writer.commit_scores(
            0,
            [Score(row.key, make_signal(1, 20, 4))],
            completion_token_ids={row.key: row.completion_token_ids},
        )
    assert same_row(load_rows(store, with_signal=True)[0], make_row(1, num_tokens=20))


def test_keys_must_belong_to_the_partition_and_occur_once(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 3)
    groups = by_partition([make_row(i) for i in range(20)], 3)
    with PartWriter(store) as writer:
        with pytest.raises(DataError, match="does not belong to partition 1"):
            writer.commit_rows(1, groups[0])
        with pytest.raises(DataError, match="twice"):
            writer.commit_rows(0, [groups[0][0], groups[0][0]])
        with pytest.raises(DataError, match="without rows"):
            writer.commit_rejects(0, [])
    assert list_uncommitted(store) == []


def test_a_closed_writer_is_gone(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 1)
    with PartWriter(store) as writer:
        assert len(list(store.layout.writers.iterdir())) == 1
        writer.commit_rejects(0, [make_reject(1)])
    assert list(store.layout.writers.iterdir()) == []
    with pytest.raises(RuntimeError):
        writer.commit_rejects(0, [make_reject(2)])
    writer.close()


def test_a_store_that_can_not_be_written_says_so(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 1)
    (store.path / "partitions").write_text("in the way", encoding="utf-8")
    with PartWriter(store) as writer, pytest.raises(EnvironmentFault) as caught:
        writer.commit_rows(0, [make_row(1)])
    assert caught.value.exit_code == 4


def test_a_commit_that_would_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I35."""
    store = open_store(tmp_path / "store", IDENTITY, 1)
    rows = [make_row(i, num_tokens=200) for i in range(50)]
    asked: list[int] = []

    def free(path: Path) -> int:
        asked.append(len(asked))
        return 20_000

    with PartWriter(store) as writer:
        with monkeypatch.context() as patch:
            patch.setattr("raystill.run.disk.free_bytes", free)
            with pytest.raises(EnvironmentFault, match="not enough disk") as caught:
                writer.commit_rows(0, rows)
        assert asked and caught.value.exit_code == 4
        assert not list(store.path.rglob("*.parquet")) and load_commits(store, 0) == []
        record = writer.commit_rows(0, rows)
    assert 20_000 < record.size_bytes <= rows_to_table(rows).nbytes  # the estimate bounds what is written


def test_rows_keys_and_digest_do_not_depend_on_order_and_cut(tmp_path: Path) -> None:
    rows = [make_row(i, num_tokens=i % 4) for i in range(30)]
    one = build_store(tmp_path / "one", rows, num_partitions=2, rows_per_part=30)
    two = build_store(tmp_path / "two", reversed(rows), num_partitions=2, rows_per_part=3)
    assert content_digest(one) == content_digest(two)
    pairs = zip(load_rows(one, with_signal=True), load_rows(two, with_signal=True), strict=True)
    assert all(same_row(*pair) for pair in pairs)
    changed = [*rows[:-1], replace(rows[-1], completion="else")]
    assert content_digest(build_store(tmp_path / "three", changed, num_partitions=2)) != content_digest(one)


def test_two_writers_at_once_lose_and_repeat_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", IDENTITY, 2)
    rows = [make_row(i) for i in range(120)]
    # The middle third is written by both: two runs that share a store and started together.
    threads = [threading.Thread(target=commit_all, args=(store, part, 3)) for part in (rows[:80], rows[40:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [row.key for row in iter_rows(store)]
    assert sorted(keys) == sorted(row.key for row in rows)
    report = verify_store(store.path)
    assert report.ok
    assert (report.num_rows, report.num_duplicates) == (120, 40)
    assert content_digest(store) == content_digest(build_store(tmp_path / "alone", rows))


def test_of_two_different_rows_with_one_key_the_older_part_counts(tmp_path: Path) -> None:
    first = make_row(1)
    second = replace(first, completion="another draw")
    store = open_store(tmp_path / "store", IDENTITY, 1)
    alone = build_store(tmp_path / "alone", [first, make_row(2)], num_partitions=1)
    with PartWriter(store) as late, PartWriter(store) as early:
        early.commit_rows(0, [first])
        wait_a_millisecond()
        late.commit_rows(0, [second, make_row(2)])
    assert {row.completion for row in iter_rows(store)} == {first.completion, "answer 2"}
    assert content_digest(store) == content_digest(alone)


def wait_a_millisecond() -> None:
    threading.Event().wait(0.002)


def test_a_token_may_be_sampled_from_far_down(tmp_path: Path) -> None:
    row = make_row(9, num_tokens=200, num_logprobs=1)
    assert row.signal is not None
    assert (row.signal.topk_ids_TK[:, 0] != sampled_tokens(9, 200)).any()
    build_store(tmp_path / "store", [row])


def test_a_clock_that_is_set_back_or_stands_still_loses_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F29: file names begin with the time, and never depend on it to be unique."""
    rows = [make_row(i) for i in range(8)]
    now = {"ns": 1_700_000_000_000_000_000}
    monkeypatch.setattr("raystill.store.writer.time.time_ns", lambda: now["ns"])
    store = open_store(tmp_path / "store", IDENTITY, 1)
    with PartWriter(store) as one, PartWriter(store) as two:
        for index, row in enumerate(rows):
            if index == 4:
                now["ns"] -= 3_600_000_000_000  # an hour back; otherwise all in the same millisecond
            (one if index % 2 else two).commit_rows(0, [row])
    assert sorted(row.key for row in iter_rows(store)) == sorted(row.key for row in rows)
    assert len(load_commits(store, 0)) == 8
    report = verify_store(store.path)
    assert report.ok and report.num_duplicates == 0
    assert content_digest(store) == content_digest(build_store(tmp_path / "alone", rows, num_partitions=1))

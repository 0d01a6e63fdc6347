"""Statistics are recomputed from the files and agree with the rows that were written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from store_builder import IDENTITY, build_store, make_reject, make_row, make_signal

from raystill.store.records import Score
from raystill.store.stats import MASS_EDGES, compute_stats
from raystill.store.store import open_store
from raystill.store.writer import PartWriter


def test_counts_agree_with_the_rows(tmp_path: Path) -> None:
    rows = [make_row(i, num_tokens=i, split="eval" if i < 4 else "train") for i in range(12)]
    rows += [make_row(i, num_tokens=3, num_logprobs=None) for i in range(12, 15)]
    store = build_store(tmp_path / "store", rows, num_partitions=1)
    with PartWriter(store) as writer:
        writer.commit_scores(0, [Score(rows[12].key, make_signal(12, 3, 8))])
        writer.commit_rows(0, rows[:2])  # a race's duplicates
        writer.commit_rejects(0, [make_reject(0), make_reject(100), make_reject(101)])
        writer.commit_rejects(0, [make_reject(12, "score"), make_reject(13, "score")])
    stats = compute_stats(store)
    assert stats.num_rows == 15
    assert stats.num_duplicates == 2
    assert stats.num_tokens == sum(range(12)) + 9
    assert stats.num_prompt_tokens == 15 * 3
    assert stats.splits == {"eval": 4, "train": 11}
    assert stats.finish_reasons == {"length": 5, "stop": 10}
    assert stats.flags == {"over_length": 3}
    assert stats.num_scored == 13
    assert stats.logprob_widths == {"4": 12, "8": 1}
    assert (stats.num_rejects, stats.rejects_by_code) == (3, {"context": 3})  # two of five succeeded later
    assert stats.cost_usd == pytest.approx(0.017)  # the duplicates were paid as well
    assert stats.size_bytes == sum(p.stat().st_size for p in store.path.rglob("*.parquet"))
    assert stats.bytes_per_token == pytest.approx(stats.size_bytes / stats.num_tokens)

    tails = [make_signal(i, i, 4).tail_logprob_T for i in range(12)] + [make_signal(12, 3, 8).tail_logprob_T]
    mass = 1 - np.exp(np.concatenate(tails).astype(np.float64))
    assert stats.captured_mass_mean == pytest.approx(mass.mean())
    assert stats.captured_mass_histogram == tuple(np.histogram(mass, bins=MASS_EDGES)[0])
    json.dumps(asdict(stats))


def test_an_empty_store_has_empty_statistics(tmp_path: Path) -> None:
    stats = compute_stats(open_store(tmp_path / "store", IDENTITY, 3))
    assert (stats.num_rows, stats.bytes_per_token, stats.captured_mass_mean) == (0, 0.0, None)
    assert sum(stats.captured_mass_histogram) == 0


def test_a_teacher_that_is_always_sure_lands_in_the_last_interval(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(1, num_tokens=5, num_logprobs=50)])
    assert compute_stats(store).captured_mass_histogram == (0, 0, 0, 0, 0, 0, 5)


def test_answers_that_came_as_text_have_the_tokens_of_their_scores(tmp_path: Path) -> None:
    rows = [make_row(i, num_tokens=0, num_logprobs=None) for i in range(3)]
    store = build_store(tmp_path / "store", rows, num_partitions=1)
    assert compute_stats(store).num_tokens == 0
    with PartWriter(store) as writer:
        writer.commit_scores(0, [Score(rows[0].key, make_signal(0, 5, 4))])
        writer.commit_scores(0, [Score(row.key, make_signal(1, 7, 8)) for row in rows[:2]])
    assert compute_stats(store).num_tokens == 2 * 7


def test_leftovers_are_counted(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store", [make_row(1)], num_partitions=1)
    (store.layout.parts("rows", 0) / ".tmp-x-part.parquet").write_bytes(b"")
    assert compute_stats(store).num_uncommitted == 1

"""The columns benchmark: realistic logprobs, honest arithmetic, and a part that really holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raystill.bench.columns import _identity, column_rows, commit_flat, make_flat_logprobs, run_bench
from raystill.store.reader import load_rows
from raystill.store.store import open_store

pytest.importorskip("vllm.logprobs")


def test_made_logprobs_are_distributions_in_vllms_order() -> None:
    flat = make_flat_logprobs(3, 50, 20)
    assert len(flat) == 50 and len(flat.token_ids) == 50 * 21
    for t, position in enumerate(flat):
        logprobs = np.array(flat.logprobs[t * 21 + 1 : (t + 1) * 21])
        assert (np.diff(logprobs) <= 0.0).all()
        assert 0.69 < np.exp(logprobs).sum() < 1.0
        ids = flat.token_ids[t * 21 : (t + 1) * 21]
        assert len(set(ids[1:])) == 20
        if ids[0] in ids[1:]:
            assert flat.logprobs[t * 21] == logprobs[ids[1:].index(ids[0])]
            assert position[ids[0]].rank == ids[1:].index(ids[0]) + 1
    sampled_inside = sum(
        flat.token_ids[t * 21] in flat.token_ids[t * 21 + 1 : (t + 1) * 21] for t in range(50)
    )
    assert 30 <= sampled_inside < 50


def test_what_is_timed_is_stored(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", _identity(), 1)
    flats = [make_flat_logprobs(seed, 5, 20) for seed in range(3)]
    commit_flat(store, flats)
    rows = load_rows(store, with_signal=True)
    stored = {tuple(row.completion_token_ids.tolist()) for row in rows}
    assert stored == {tuple(flat.token_ids[::21]) for flat in flats}
    assert all(row.signal is not None and row.signal.topk_ids_TK.shape == (5, 20) for row in rows)


def test_ratios_are_the_peers_time_over_ours() -> None:
    rows = column_rows({"numpy": 2.0, "all in": 10.0, "dicts": 100.0, "flat": 50.0})
    assert [row.ratio for row in rows] == [10.0, 50.0, 25.0]
    assert [row.met for row in rows] == [True, True, False]
    (alone,) = column_rows({"numpy": 2.0, "all in": 12.5})
    assert (alone.peer, alone.ratio, alone.met) == (None, None, False)


def test_a_quick_run_measures_all_four() -> None:
    result = run_bench(quick=True)
    assert result["bench"] == "columns" and len(result["rows"]) == 3
    assert all(row["ours"] > 0.0 and row["peer"] > 0.0 for row in result["rows"])

"""Training benchmarks: the same rows for every side, and goals judged against the fastest peer."""

from __future__ import annotations

import numpy as np
import pytest

from raystill.bench.training_models import (
    BATCH_ROWS,
    LENGTH,
    NUM_LOGPROBS,
    build_tokenizer,
    draw_lengths,
    make_examples,
    make_kd_rows,
    make_sft_rows,
)
from raystill.bench.training_rounds import Goal, goal_rows


def test_lengths_are_skewed_as_the_baselines_were() -> None:
    lengths = np.array(draw_lengths(400)).reshape(-1, BATCH_ROWS)
    assert lengths.min() >= 32 and lengths.max() == LENGTH
    assert 0.5 < lengths.sum() / (lengths.max(axis=1) * BATCH_ROWS).sum() < 0.68
    rows = make_sft_rows(8, 100)
    assert [len(row) for row in rows] == draw_lengths(8) and min(min(row) for row in rows) >= 2


def test_made_signals_are_distributions_over_distinct_tokens() -> None:
    examples = make_examples(make_kd_rows(1, 32_000)[:1], 500, 32_000, signal=True)
    assert examples.signals is not None
    ids_SK, logprobs_SK = examples.signals.ids_SK, examples.signals.logprobs_SK.astype(np.float64)
    assert ids_SK.shape == (12, NUM_LOGPROBS)
    assert all(len(set(row)) == NUM_LOGPROBS for row in ids_SK.tolist())
    mass = np.exp(logprobs_SK).sum(axis=1) + np.exp(examples.signals.tail_logprob_S)
    assert mass == pytest.approx(np.ones(12), abs=0.01)


def test_goals_are_judged_against_the_fastest_peer_that_was_measured() -> None:
    medians = {
        "ours-bf16": {"tokens_per_s": 60.0, "peak_mb": 5.0},
        "ours-fp32": {"tokens_per_s": 100.0, "peak_mb": 10.0},
        "peer-fp32": {"tokens_per_s": 20.0, "peak_mb": 90.0},
        "peer-bf16": {"tokens_per_s": 40.0, "peak_mb": 40.0},
    }
    speed, memory = goal_rows("x", medians, [Goal("The peer", "peer", 2.0, memory=5.0)])
    assert (speed.ratio, speed.met) == (2.5, True) and "(peer-bf16)" in speed.peer_name
    assert "ours-fp32" in speed.case
    assert (memory.ratio, memory.met) == (4.0, False)
    assert goal_rows("x", medians, [Goal("Another", "absent", 2.0)]) == []


def test_the_tokenizer_is_one_word_per_id() -> None:
    tokenizer = build_tokenizer(50)
    assert tokenizer("w2 w49")["input_ids"] == [2, 49] and tokenizer.pad_token_id == 0

"""Intervals against published values, a direct simulation, and the cases that must be refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.evaluate.intervals import (
    NoGapError,
    compute_gap_closed,
    compute_ratio_interval,
    compute_wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_newcombe(successes: int, n: int, low: float, high: float) -> None:
    interval = compute_wilson_interval(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    assert interval.value == successes / n


@given(n=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_holds_its_value(n: int, share: float) -> None:
    interval = compute_wilson_interval(round(share * n), n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_rate(successes: int, n: int) -> None:
    with pytest.raises(ValueError):
        compute_wilson_interval(successes, n)


def test_ratio_is_weighted_and_its_interval_is_that_of_the_mean() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(3.0, 2.0, 400)
    interval = compute_ratio_interval(values, np.ones(400))
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)
    weighted = compute_ratio_interval(np.array([1.0, 9.0]), np.array([1.0, 3.0]))
    assert weighted.value == 2.5


def test_ratio_without_weight_is_refused() -> None:
    with pytest.raises(ValueError):
        compute_ratio_interval(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError):
        compute_ratio_interval(np.zeros(0), np.zeros(0))


def _scores(generator: np.random.Generator, share: float, n: int = 500) -> np.ndarray:
    return (generator.random(n) < share).astype(np.float64)


def test_gap_closed_is_the_ratio_of_gains_and_covers_the_truth() -> None:
    covered = 0
    for seed in range(30):
        generator = np.random.default_rng(seed)
        before, after, teacher = (_scores(generator, share) for share in (0.1, 0.7, 0.9))
        interval = compute_gap_closed(before, after, teacher, seed=seed)
        expected = (after.mean() - before.mean()) / (teacher.mean() - before.mean())
        assert interval.value == pytest.approx(expected)
        covered += interval.low <= 0.75 <= interval.high
    assert covered >= 25  # 95 % of 30 is 28.5; fewer than 25 has probability below 0.004


def test_gap_closed_is_paired() -> None:
    before = np.zeros(200)
    teacher = np.tile([1.0, 0.0], 100)
    interval = compute_gap_closed(before, teacher, teacher)
    assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_weights_make_it_a_per_token_mean() -> None:
    before, after, teacher = np.array([0.0, 0.0]), np.array([1.0, 0.0]), np.array([1.0, 1.0])
    assert compute_gap_closed(before, after, teacher, np.array([3.0, 1.0])).value == pytest.approx(0.75)


def test_no_gap_is_refused_not_divided() -> None:
    same = np.ones(50)
    with pytest.raises(NoGapError):
        compute_gap_closed(same, same, same)
    with pytest.raises(NoGapError):
        compute_gap_closed(same, same, np.zeros(50))
    with pytest.raises(ValueError):
        compute_gap_closed(same, same[:40], same)


def test_a_gap_that_is_hardly_there_has_an_unbounded_interval() -> None:
    before, teacher = np.zeros(40), np.zeros(40)
    teacher[0] = 1.0
    after = np.zeros(40)
    after[1] = 1.0
    interval = compute_gap_closed(before, after, teacher)
    assert interval.high == np.inf

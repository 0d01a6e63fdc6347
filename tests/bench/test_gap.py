"""The gap benchmark's verdicts: better counts only where the intervals are apart."""

from __future__ import annotations

import pytest

from raystill.bench.gap import _above, _at_least, _pool
from raystill.evaluate.intervals import compute_wilson_interval


@pytest.mark.parametrize(("ours", "peer", "met"), [(450, 200, True), (255, 250, False), (200, 450, False)])
def test_better_means_intervals_apart(ours: int, peer: int, met: bool) -> None:
    row = _above("case", compute_wilson_interval(ours, 500), compute_wilson_interval(peer, 500), "SFT")
    assert row.met is met
    assert row.ratio == pytest.approx(ours / peer)


def test_a_peer_at_zero_has_no_ratio() -> None:
    row = _above("case", compute_wilson_interval(100, 500), compute_wilson_interval(0, 500), "untrained")
    assert row.met and row.ratio is None


def test_pooling_counts_prompts_not_seeds() -> None:
    pooled = _pool([compute_wilson_interval(10, 100), compute_wilson_interval(90, 300)])
    assert pooled == compute_wilson_interval(100, 400)


@pytest.mark.parametrize(("value", "met"), [(0.8, True), (0.79, False)])
def test_a_goal_is_reached_or_not(value: float, met: bool) -> None:
    assert _at_least("case", "gap closed", value, 0.8).met is met

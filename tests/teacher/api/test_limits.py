"""Rates and concurrency against a clock that the tests turn."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from raystill.teacher.api.limits import AdaptiveConcurrency, MeanTokens, TokenBucket


@settings(max_examples=60, deadline=None)
@given(
    per_minute=st.integers(30, 100_000),
    amounts=st.lists(st.integers(1, 5_000), min_size=5, max_size=60),
    lateness=st.floats(0.0, 0.2),
)
def test_a_bucket_holds_its_rate_and_wastes_nothing(
    per_minute: int, amounts: list[int], lateness: float
) -> None:
    bucket, now, taken = TokenBucket(per_minute), 0.0, 0
    for amount in amounts:
        wait = bucket.seconds_until(amount, now)
        now += wait + (lateness if wait else 0.0)
        assert bucket.seconds_until(amount, now) < 1e-9
        bucket.take(amount, now)
        taken += amount
    allowed = bucket.capacity + now * per_minute / 60.0
    assert taken <= allowed + max(amounts)  # the last one may be in debt
    ideal = (taken - max(amounts) - bucket.capacity) * 60.0 / per_minute
    assert now <= max(0.0, taken * 60.0 / per_minute) + lateness * len(amounts) + 1e-6
    assert now >= ideal - 1e-6


def test_what_is_given_back_can_be_taken_at_once() -> None:
    bucket = TokenBucket(60_000)
    bucket.take(1000, 0.0)
    assert bucket.seconds_until(500, 0.0) > 0.4
    bucket.take(-800, 0.0)
    assert bucket.seconds_until(500, 0.0) == 0.0


def test_random_throttles_leave_the_concurrency_alone_and_many_halve_it() -> None:
    """F5."""
    noise = random.Random(1)
    limit = AdaptiveConcurrency(50)
    for step in range(5000):
        if noise.random() < 0.02:
            limit.on_throttle(0.1, float(step))
        else:
            limit.on_answer()
    assert limit.limit >= 45
    for step in range(600):
        limit.on_answer()
        limit.on_throttle(0.1, 5000.0 + step)
    assert limit.limit <= 3
    for _ in range(3000):
        limit.on_answer()
    assert limit.limit == 50


def test_a_series_of_throttles_closes_the_endpoint_to_everyone() -> None:
    """F5."""
    limit = AdaptiveConcurrency(10)
    limit.on_throttle(2.0, 0.0)
    assert limit.seconds_until_open(0.0) == 0.0
    limit.on_throttle(2.0, 0.1)
    limit.on_throttle(2.0, 0.2)
    assert limit.seconds_until_open(0.2) == 2.0
    assert limit.seconds_until_open(2.3) == 0.0


def test_the_mean_follows_what_answers_use() -> None:
    mean = MeanTokens(512.0)
    for _ in range(200):
        mean.add(50.0)
    assert abs(mean.value - 50.0) < 1.0

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
            limit.on_throttle(limit.epoch, 0.1, float(step))
        else:
            limit.on_answer(limit.epoch)
    assert limit.limit >= 45
    for step in range(600):
        limit.on_answer(limit.epoch)
        limit.on_throttle(limit.epoch, 0.1, 5000.0 + step)
    assert limit.limit <= 3
    for _ in range(3000):
        limit.on_answer(limit.epoch)
    assert limit.limit == 50


@given(ceiling=st.integers(20, 256), answers=st.integers(0, 1000), data=st.data())
def test_a_burst_costs_one_cut_and_is_made_good_in_two_round_trips(
    ceiling: int, answers: int, data: st.DataObject
) -> None:
    """F5: a burst as large as what is in flight, however much of that was answered before."""
    limit = AdaptiveConcurrency(ceiling)
    for _ in range(2 * ceiling + 100 + answers):
        limit.on_answer(limit.epoch)
    sent = limit.epoch
    burst = [True] * data.draw(st.integers(20, ceiling)) + [False] * data.draw(st.integers(0, ceiling))
    for is_throttled in data.draw(st.permutations(burst)):
        if is_throttled:
            limit.on_throttle(sent, 1.0, 0.0)
        else:
            limit.on_answer(sent)
    assert limit.epoch <= sent + 1
    assert limit.limit >= ceiling // 2
    for _ in range(2 * (ceiling // 2) + 1):
        limit.on_answer(limit.epoch)
    assert limit.limit == ceiling


@settings(max_examples=30)
@given(
    ceiling=st.integers(1, 128), script=st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=2000)
)
def test_the_concurrency_stays_between_one_and_its_ceiling(
    ceiling: int, script: list[tuple[bool, int]]
) -> None:
    """Whatever is answered, and whenever that was sent."""
    limit = AdaptiveConcurrency(ceiling)
    for is_throttled, age in script:
        if is_throttled:
            limit.on_throttle(limit.epoch - age, 1.0, 0.0)
        else:
            limit.on_answer(limit.epoch - age)
        assert 1 <= limit.limit <= ceiling


@settings(max_examples=30)
@given(ceiling=st.integers(20, 200), share=st.floats(0.05, 1.0))
def test_an_endpoint_with_room_for_fewer_is_used_and_seldom_asked_in_vain(ceiling: int, share: float) -> None:
    """F5: throttles whatever exceeds its room, in rounds; slow start may not chase a level that is gone."""
    room = max(8, int(ceiling * share))
    limit = AdaptiveConcurrency(ceiling)
    for _ in range(5):
        for _ in range(ceiling):
            limit.on_answer(limit.epoch)  # at first there was room for all: the ceiling was good
    answered = throttled = 0
    for number in range(600):
        sent, asked = limit.epoch, limit.limit
        for place in range(asked):
            if place < room:
                limit.on_answer(sent)
            else:
                limit.on_throttle(sent, 0.1, float(number))
        if number >= 100:
            answered += min(asked, room)
            throttled += max(0, asked - room)
    assert answered >= 0.8 * room * 500
    assert throttled <= 0.2 * answered


def test_a_series_of_throttles_closes_the_endpoint_to_everyone() -> None:
    """F5."""
    limit = AdaptiveConcurrency(10)
    limit.on_throttle(0, 2.0, 0.0)
    assert limit.seconds_until_open(0.0) == 0.0
    limit.on_throttle(0, 2.0, 0.1)
    limit.on_throttle(0, 2.0, 0.2)
    assert limit.seconds_until_open(0.2) == 2.0
    assert limit.seconds_until_open(2.3) == 0.0


def test_the_mean_follows_what_answers_use() -> None:
    mean = MeanTokens(512.0)
    for _ in range(200):
        mean.add(50.0)
    assert abs(mean.value - 50.0) < 1.0

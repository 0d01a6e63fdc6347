from __future__ import annotations

import pytest

from raystill.train.clock import PARTS, StepClock


class _Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_shares_are_of_the_window_and_begin_anew() -> None:
    now = _Time()
    clock = StepClock(now)
    with clock.measure("data"):
        now.seconds += 0.05
    with clock.measure("backward"):
        now.seconds += 0.1
    with clock.paused():
        now.seconds += 0.2
    seconds, shares = clock.read()
    assert seconds == pytest.approx(0.15)
    assert shares["time/data"] == pytest.approx(1 / 3)
    assert shares["time/backward"] == pytest.approx(2 / 3)
    assert shares.keys() == {f"time/{part}" for part in PARTS}
    seconds, shares = clock.read()
    assert seconds < 1e-6 and not any(shares.values())


def test_time_that_ends_in_an_error_counts() -> None:
    clock = StepClock()
    with pytest.raises(KeyError), clock.measure("save"):
        raise KeyError
    assert clock.read()[1]["time/save"] > 0


def test_time_counts_once_for_the_innermost_part() -> None:
    now = _Time()
    clock = StepClock(now)
    with clock.measure("forward"):
        now.seconds += 1.0
        with clock.measure("teacher"):
            now.seconds += 2.0
            with clock.measure("rollout"):
                now.seconds += 4.0
        now.seconds += 1.0
    with clock.paused(), clock.measure("teacher"):
        now.seconds += 8.0
    seconds, shares = clock.read()
    assert seconds == pytest.approx(8.0)
    found = [shares[f"time/{part}"] * seconds for part in ("forward", "teacher", "rollout")]
    assert found == pytest.approx([2.0, 2.0, 4.0])

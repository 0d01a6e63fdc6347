from __future__ import annotations

import time

import pytest

from raystill.train.clock import PARTS, StepClock


def test_shares_are_of_the_window_and_begin_anew() -> None:
    clock = StepClock()
    with clock.measure("data"):
        time.sleep(0.05)
    with clock.measure("backward"):
        time.sleep(0.1)
    with clock.paused():
        time.sleep(0.2)
    seconds, shares = clock.read()
    assert seconds == pytest.approx(0.15, abs=0.04)
    assert shares["time/data"] == pytest.approx(1 / 3, abs=0.1)
    assert shares["time/backward"] == pytest.approx(2 / 3, abs=0.1)
    assert shares.keys() == {f"time/{part}" for part in PARTS}
    seconds, shares = clock.read()
    assert seconds < 0.05 and not any(shares.values())


def test_time_that_ends_in_an_error_counts() -> None:
    clock = StepClock()
    with pytest.raises(KeyError), clock.measure("save"):
        raise KeyError
    assert clock.read()[1]["time/save"] > 0

"""Which fault meets which request."""

from __future__ import annotations

import pytest

from raystill.errors import ConfigError
from raystill.testing.faults import FAULT_KINDS, Fault, FaultPlan, parse_fault


def test_faults_are_parsed() -> None:
    assert parse_fault("429=1.5:0.02") == Fault("429", "1.5", 0.02)
    assert parse_fault("429=date+3@1,2") == Fault("429", "date+3", 0.0, frozenset({1, 2}))
    assert [parse_fault(kind).kind for kind in FAULT_KINDS] == list(FAULT_KINDS)


@pytest.mark.parametrize("text", ["", "418", "429:two", "hang@x", "503:1.5"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a fault"):
        parse_fault(text)


def test_probabilities_are_kept_and_repeatable() -> None:
    faults = [parse_fault("503:0.1"), parse_fault("hang:0.05"), parse_fault("reset@7")]
    plan, twin = FaultPlan(faults, seed=3), FaultPlan(faults, seed=3)
    met = [plan.of_request(number) for number in range(1, 10_001)]
    assert met == [twin.of_request(number) for number in range(1, 10_001)]
    assert met[6] == faults[2]
    assert met.count(faults[0]) == pytest.approx(1000, rel=0.1)
    assert met.count(faults[1]) == pytest.approx(500, rel=0.15)
    assert FaultPlan(faults, seed=4).of_request(7) == faults[2]


def test_probabilities_beyond_certainty_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than 1"):
        FaultPlan([parse_fault("503:0.6"), parse_fault("429:0.6")])

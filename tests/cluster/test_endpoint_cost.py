"""What an endpoint will charge, from prices, samples and rates alone."""

from __future__ import annotations

from typing import Any

import pytest

from raystill.cluster.endpoint_cost import (
    estimate_cost_usd,
    estimate_seconds,
    find_budget_warning,
    teacher_work,
)
from raystill.cluster.workload import Workload
from raystill.config.schema import Config

# 100 prompts of 10 tokens, 20 held out; two samples of each training prompt.
WORK = Workload(100, 20, 180, 1_000, 18_000, False, ())


def closed(**sections: Any) -> Config:
    section: dict[str, Any] = {"model": {"name": "m"}, "prices": {"prompt": 1.0, "completion": 10.0}}
    return Config.model_validate({"teacher": {"closed": section | sections}})


def test_every_sample_pays_for_its_prompt() -> None:
    # 1,800 prompt tokens at 1 and 18,000 completion tokens at 10 USD per million.
    assert estimate_cost_usd(closed(), WORK) == pytest.approx(0.1818)
    batch = closed(endpoint={"mode": "batch"})
    assert estimate_cost_usd(batch, WORK) == pytest.approx(0.0909)


def test_an_open_teacher_and_an_unknown_size_have_no_price() -> None:
    assert estimate_cost_usd(Config.model_validate({}), WORK) is None
    assert estimate_cost_usd(closed(), Workload(None, None, None, None, None, False, ())) is None


def test_the_tighter_rate_decides_the_time() -> None:
    assert estimate_seconds(closed(), WORK) is None
    assert estimate_seconds(closed(limits={"requests_per_minute": 60}), WORK) == pytest.approx(180.0)
    both = closed(limits={"requests_per_minute": 60, "tokens_per_minute": 1_000})
    assert estimate_seconds(both, WORK) == pytest.approx(60 * 19.0)


def warn(**sections: Any) -> str | None:
    section = closed(pipeline={"max_new_tokens": 200}, **sections).teacher.closed
    assert section is not None
    found = find_budget_warning("teacher", section, teacher_work(WORK))
    assert found is None or (found.where and found.fix)
    return None if found is None else found.what


def test_what_the_budget_will_say_is_said_before() -> None:
    # About $0.18; every completion at its longest: 180 * 200 tokens at 10 USD per million, and the prompts.
    assert warn() is None
    assert warn(budget={"max_cost_usd": 0.2}) is None
    low = warn(budget={"max_cost_usd": 0.1})
    assert low is not None and "about $0.18" in low and "max_cost_usd is $0.10" in low
    uncapped = warn(budget={"ask_above_usd": 0.3})
    assert uncapped is not None and "up to $0.36" in uncapped and "no cap" in uncapped

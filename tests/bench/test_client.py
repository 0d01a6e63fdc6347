"""The client benchmark: its limit is a limit, and its sides keep what they say."""

from __future__ import annotations

import asyncio
import random

import pytest

from raystill.bench.client import LATENCY, simulated_rate
from raystill.bench.client_sides import _run_ours, _run_sdk
from raystill.testing.fault_proxy import FaultProxy
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_chat import Latency


def test_the_limit_is_what_slots_give_that_lose_no_time() -> None:
    noise = random.Random(0)
    mean = sum(LATENCY.draw(noise) for _ in range(4000)) / 4000
    one, many = simulated_rate(1, 2000, random.Random(1)), simulated_rate(64, 20_000, random.Random(1))
    assert one == pytest.approx(1.0 / mean, rel=0.05)
    assert many == pytest.approx(64.0 / mean, rel=0.05)


@pytest.mark.parametrize("per_minute", [0, 3000])
def test_our_side_answers_every_row(per_minute: int) -> None:
    with ScriptedApi(latency=Latency(0.02), faults=["429=0.1:0.05"]) as api:
        found = asyncio.run(_run_ours(api.url, 16, 100, per_minute))
        assert (found["kept"], found["wrong"]) == (100, 0)
        assert api.counts.max_in_flight <= 16
    if per_minute:
        assert found["rows_per_s"] < 2.5 * per_minute / 60


def test_bad_answers_are_kept_by_the_sdk_alone() -> None:
    with ScriptedApi() as api, FaultProxy(api.url, ["null_content@5,9", "empty_choices@12"]) as proxy:
        assert asyncio.run(_run_sdk(proxy.url, 4, 30))["wrong"] == 2
    with ScriptedApi() as api, FaultProxy(api.url, ["null_content@5,9", "empty_choices@12"]) as proxy:
        ours = asyncio.run(_run_ours(proxy.url, 4, 30, 0))
    assert ours["wrong"] == 0
    assert ours["kept"] >= 28

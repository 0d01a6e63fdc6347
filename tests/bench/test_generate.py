"""The generate benchmark's arithmetic: which sides are compared, and when a rate starts to count."""

from __future__ import annotations

import pytest

from raystill.bench.generate import QUICK_SIDES, SIDES, Side, generate_rows
from raystill.bench.generate_sides import steady_rate


def test_every_goal_is_judged_once() -> None:
    rates = {side: 100.0 for side in SIDES} | {Side("tiny", "ray", 20): 25.0}
    rows = generate_rows(rates)
    judged = {(row.case, row.peer_name): (row.goal, row.met) for row in rows}
    assert len(judged) == len(rows) == 9
    assert judged["tiny, top-20 kept", "vllm.LLM flat"] == (">= 0.9", True)
    assert judged["60M, text only", "vllm.LLM"] == (">= 0.95", True)
    assert judged["tiny, text only", "ray.data.llm"] == (">= 1.2", False)
    assert judged["tiny, top-20 kept", "ray.data.llm"] == (">= 3.5", True)
    assert judged["60M, top-20 kept", "ours, text only"] == (">= 0.88", True)


def test_quick_judges_the_one_pair_that_it_measures() -> None:
    (row,) = generate_rows(dict(zip(QUICK_SIDES, (80.0, 100.0), strict=True)))
    assert (row.peer_name, row.ratio, row.met) == ("vllm.LLM flat", 0.8, False)


def test_a_steady_rate_leaves_the_start_out() -> None:
    arrivals = [(100.0 + wave, 10) for wave in range(5) for _ in range(4)]
    assert steady_rate(arrivals, in_flight=4) == pytest.approx(40.0)
    assert steady_rate(arrivals[:8], in_flight=256) == pytest.approx(40.0)

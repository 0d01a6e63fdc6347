"""What a judge is asked, counted before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raystill.cluster.demand import stage_demand
from raystill.cluster.judge_work import estimate_judge_work
from raystill.cluster.plan_warnings import find_budget_warnings
from raystill.cluster.workload import Workload
from raystill.config.schema import Config

DEMO = Path(__file__).resolve().parents[2] / "platform" / "raystill" / "demo"
# 100 prompts of 10 tokens, 20 held out; two samples of each training prompt; 100 tokens per answer.
WORK = Workload(100, 20, 180, 1_000, 18_000, False, ())
TEMPLATE = "{conversation} {answer} " + "x" * 376


def judged(**grade: Any) -> Config:
    return Config.model_validate({"grade": {"template": TEMPLATE, "rubric": "r" * 40, **grade}})


def test_every_training_answer_is_a_question() -> None:
    prices = {"prompt": 1.0, "completion": 10.0}
    config = judged(
        closed={
            "model": {"name": "m"},
            "pipeline": {"max_new_tokens": 50},
            "prices": prices,
            "limits": {"requests_per_minute": 80},
            "budget": {"max_cost_usd": 0.01},
        }
    )
    found = estimate_judge_work(config, WORK)
    assert found is not None
    # 160 answers; 400 + 40 bytes are 110 tokens, a conversation has 10 and an answer 100.
    assert (found.questions, found.prompt_tokens, found.completion_tokens) == (160, 160 * 220, 160 * 25)
    assert found.cost_usd == pytest.approx((160 * 220 * 1.0 + 160 * 25 * 10.0) / 1e6)
    assert found.least_seconds == pytest.approx(120.0)
    assert found.operations is None
    assert found.describe() == "160 answers, ~35,200 tokens to read, ~4,000 to write"
    (warning,) = find_budget_warnings(config, {"grade"}, WORK, found)
    assert "grade.closed.budget.max_cost_usd" in warning.what
    assert find_budget_warnings(config, set(), WORK, found) == []
    assert stage_demand(config, "grade", "cpu") is None


def test_an_open_judge_costs_time_and_engines_of_its_own() -> None:
    config = judged(open={"model": {"name": str(DEMO / "teacher")}}, vllm={"num_engines": 3})
    found = estimate_judge_work(config, WORK)
    assert found is not None and found.parameters is not None and found.tokens is not None
    assert found.operations == pytest.approx(2.0 * found.parameters * found.tokens)
    assert (found.cost_usd, found.least_seconds) == (None, None)
    demand = stage_demand(config, "grade", "cuda")
    assert demand is not None
    assert (demand.most, demand.each, demand.key) == (3, {"GPU": 1.0}, "grade.vllm.num_engines")


def test_without_a_judge_there_is_none_and_what_is_unknown_stays_so() -> None:
    assert estimate_judge_work(Config.model_validate({}), WORK) is None
    unknown = Workload(None, None, None, None, None, False, ())
    found = estimate_judge_work(judged(open={"model": {"name": "somewhere/else"}}), unknown)
    assert found is not None
    assert (found.questions, found.tokens, found.operations) == (None, None, None)
    assert "after prepare" in found.describe()

"""The training section: curves, where a step's time goes, and what an on-policy run adds."""

from __future__ import annotations

from typing import Any

import pytest

from raystill.config.schema import Config
from raystill.report.facts import ReportFacts
from raystill.report.training_section import render_training, time_shares


def line(step: int, seconds: float, **values: float) -> dict[str, Any]:
    return {"step": step, "train/loss": 1.0 / step, "time/seconds": seconds, **values}


def facts_of(curve: list[dict[str, Any]], **teacher: Any) -> ReportFacts:
    config = Config.model_validate(
        {
            "teacher": {"open": {"model": {"name": "models/large"}}},
            "train": {"distillation": {"teacher": teacher}},
            "losses": {"kl_weight": 1.0, "ce_weight": 0.0, "divergence": "reverse_kl"},
        }
    )
    return ReportFacts(config, {}, None, [], {"distill": curve}, {}, None, None)


def test_shares_are_weighed_by_the_seconds_they_are_about() -> None:
    records = [
        line(1, 9.0, **{"time/rollout": 0.9, "time/forward": 0.1}),
        line(2, 1.0, **{"time/rollout": 0.0, "time/forward": 0.5}),
        {"step": 2, "eval/loss": 1.0},
    ]
    shares = time_shares(records)
    assert shares["Writing rollouts"] == pytest.approx(0.81)
    assert shares["Student's forward pass, loss"] == pytest.approx(0.14)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert time_shares([{"step": 1, "train/loss": 1.0}]) == {}


def test_an_on_policy_run_says_who_wrote_and_what_it_cost() -> None:
    rollout = {"rollout/share": 0.5, "rollout/tokens": 12.0, "rollout/ended": 0.75, "rollout/staleness": 1.0}
    curve = [line(step, 2.0, **{"train/kd_kl": 0.5, "time/rollout": 0.4}, **rollout) for step in range(1, 5)]
    teacher = {"source": "on_policy", "rollouts": {"share": 0.5, "sync_every": 2}}
    page = render_training(facts_of([*curve, {"step": 4, "eval/loss": 0.4, "eval/kd_kl": 0.4}], **teacher))
    assert page is not None
    for wanted in (
        "text that the student wrote",
        "Length of rollouts",
        "teacher, in the training workers; whole distributions",
        "reverse_kl, temperature 1",
        "50 %, weights renewed every 2 steps, transformers",
        "12.0 tokens of at most 128; 75 % wrote their own end",
        "40 % of training, 3.2 s",
        "Writing rollouts",
    ):
        assert wanted in page, wanted
    assert page.count('class="mark distill"') == 2  # held-out loss and divergence


def test_a_run_from_the_store_has_nothing_of_it() -> None:
    page = render_training(facts_of([line(1, 1.0), line(2, 1.0)]))
    assert page is not None
    assert "the store: top 20 of every token" in page
    assert "ollouts" not in page
    assert render_training(facts_of([])) is None

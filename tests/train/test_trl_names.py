"""Lines of metrics.jsonl under TRL's names as well, where `trackers.trl_names` asks for them."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest

from raystill.train.group import WorkerGroup
from raystill.train.trl_names import name_as_trl
from raystill.train.worker import train_worker


class StopError(Exception):
    """Ends a run from within."""


class StopAtOnce:
    """A reporter that ends the run at its first save."""

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        raise StopError


def test_rollouts_that_did_not_end_were_clipped() -> None:
    nothing, some = {"tokens": 0.0, "right": 0.0}, {"tokens": 8.0, "right": 2.0}
    clipped = name_as_trl({"rollout/ended": 0.75}, nothing, 10)
    assert clipped == {"num_tokens": 10.0, "completions/clipped_ratio": 0.25}
    assert name_as_trl({"train/loss": 1.0}, some, 9) == {"num_tokens": 9.0, "mean_token_accuracy": 0.25}


def test_tokens_and_right_ones_are_counted_from_the_first_step_on_across_a_resume(world: Any) -> None:
    common = {"training": {"steps": 12, "save_every": 3, "log_every": 2}, "trackers": {"trl_names": True}}
    whole, broken = world.config("whole", **common), world.config("broken", **common)
    world.train(whole)
    with pytest.raises(StopError):
        train_worker(world.job(broken), WorkerGroup(), StopAtOnce())
    world.train(broken)
    lines = [line for line in world.metrics(whole) if "train/loss" in line]
    counted = [line["num_tokens"] for line in lines]
    rates = [line["train/tok_s_useful"] * line["time/seconds"] for line in lines]
    assert counted == pytest.approx(list(accumulate(rates))) and len(counted) == 6
    again = [line for line in world.metrics(broken) if "train/loss" in line]
    for name in ("num_tokens", "mean_token_accuracy"):
        assert [line[name] for line in again] == [line[name] for line in lines]
    right = [line["mean_token_accuracy"] for line in lines]
    assert 0.0 <= min(right) < max(right) <= 1.0
    plain = world.config("plain", training={"steps": 1})
    world.train(plain)
    assert not any("num_tokens" in line for line in world.metrics(plain))

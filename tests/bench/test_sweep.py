"""`bench sweep`: what it compares, and how it reads a trial's seconds and overhead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raystill.bench.sweep import PEERS, QUICK, Sizes, compare, largest_gap, overhead_seconds, write_config
from raystill.bench.sweep_sides import training_seconds
from raystill.config.load import load_config
from raystill.tune.space import plan_params


def side(wall: float, concurrent: int, loss: float) -> dict[str, object]:
    return {"wall_s": wall, "concurrent": concurrent, "losses": {"0": loss, "1": 2.0},
            "train_s": {"0": 10.0, "1": 10.0}}  # fmt: skip


def test_rows_judge_wall_time_overhead_and_losses() -> None:
    found = {"ours": side(15.0, 2, 1.0), PEERS[0]: side(60.0, 1, 1.0), PEERS[1]: side(30.0, 2, 1.1)}
    sizes = Sizes(ranks=(8,), rates=(1e-3, 1e-2))
    rows = {(row.metric, row.peer_name): row for row in compare(sizes, found)}
    assert rows["wall, s", PEERS[0]].ratio == 0.25 and rows["wall, s", PEERS[0]].met
    assert rows["wall, s", PEERS[1]].ratio == 0.5 and not rows["wall, s", PEERS[1]].met
    assert rows["overhead per trial, s", PEERS[0]].ours == 2.5
    assert rows["overhead per trial, s", PEERS[0]].peer == 20.0
    assert rows["largest loss difference", PEERS[0]].met
    assert not rows["largest loss difference", PEERS[1]].met
    assert rows["wall, s", PEERS[0]].case == "2 LoRA trials of 10 s"


def test_a_missing_trial_is_no_equal_loss() -> None:
    assert largest_gap({"0": 1.0}, {"0": 1.0, "1": 1.0}) == float("inf")
    assert overhead_seconds(side(20.0, 1, 1.0)) == 0.0


def test_the_trials_are_the_ones_that_are_said(tmp_path: Path) -> None:
    config = load_config([write_config(tmp_path, Sizes())]).config
    assert config.tune is not None and len(plan_params(config.tune)) == Sizes().trials == 8
    assert QUICK.trials == 2


def test_seconds_lie_between_the_first_and_the_last_milestone(tmp_path: Path) -> None:
    for step, moment in ((4, 100.0), (20, 104.0), (40, 109.0)):
        file = tmp_path / f"step-{step:08d}" / "manifest.json"
        file.parent.mkdir()
        file.touch()
        os.utime(file, (moment, moment))
    assert training_seconds(tmp_path) == pytest.approx(10.0)

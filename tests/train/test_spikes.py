from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from raystill.checkpoint.store import open_checkpoint, save_checkpoint
from raystill.train.assembly import assemble
from raystill.train.group import WorkerGroup
from raystill.train.spikes import HISTORY, is_spike
from raystill.train.step import _is_taken, train_step

STEADY = [1.0 + 0.01 * (index % 5) for index in range(40)]


@pytest.mark.parametrize(
    ("norm", "recent", "threshold", "found"),
    [
        (1.5, STEADY, 20.0, False),  # far in deviations, and not twice the median
        (2.5, STEADY, 20.0, True),
        (2.5, STEADY, 0.0, False),
        (2.5, STEADY[:19], 20.0, False),
        (30.0, [float(index % 10) for index in range(40)], 20.0, False),  # noisy: 20 deviations are far
    ],
)
def test_a_spike_is_far_out_and_twice_the_median(
    norm: float, recent: list[float], threshold: float, found: bool
) -> None:
    assert is_spike(norm, recent, threshold) is found


def test_spikes_are_skipped_and_counted_but_never_for_good(world: Any) -> None:
    """F23."""
    run = assemble(world.job(world.config()), WorkerGroup())
    settings, counters = replace(run.settings, max_spike_steps=2), run.state.counters
    assert all(_is_taken(run.state, norm, settings) for norm in STEADY)
    assert [_is_taken(run.state, 100.0, settings) for _ in range(3)] == [False, False, True]
    assert (counters.spike_steps, counters.spike_streak) == (2, 0)
    assert counters.recent_norms == [100.0]  # the history begins anew
    assert all(_is_taken(run.state, 100.0, settings) for _ in range(2 * HISTORY))
    assert len(counters.recent_norms) == HISTORY
    assert not _is_taken(run.state, math.inf, settings)
    assert (counters.nonfinite_steps, counters.nonfinite_streak) == (1, 1)


def test_the_history_survives_a_resume_and_a_spike_leaves_no_trace(world: Any) -> None:
    config = world.config(training={"steps": 30, "save_every": 30, "spike_threshold": 1e-9})
    run = assemble(world.job(config), WorkerGroup())
    run.state.counters.recent_norms = [1e-9] * 25
    before = {name: p.detach().clone() for name, p in run.state.trainable().items()}
    result = train_step(
        run.state, run.planner.plan(0, 0), run.data.train, run.objective, run.settings, run.group
    )
    assert math.isnan(result.grad_norm)
    assert run.state.counters.spike_steps == 1
    assert all(torch.equal(before[name], p) for name, p in run.state.trainable().items())
    path = save_checkpoint(
        world.root / "checkpoints",
        run.state.step,
        tensors=run.state.tensors(is_first=True),
        state=run.state.describe(run.data_fingerprint),
    )
    again = assemble(world.job(config), WorkerGroup())
    with open_checkpoint(path) as content:
        again.state.restore(content, again.data_fingerprint)
    assert again.state.counters == run.state.counters

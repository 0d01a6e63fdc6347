"""What must not change a step's gradient: micro-batches, accumulation, padding, workers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from raystill.train.assembly import TrainRun, assemble
from raystill.train.batches import StepPlan
from raystill.train.group import WorkerGroup
from raystill.train.step import train_step


def gradient_of(world: Any, plan: StepPlan, **sections: Any) -> dict[str, torch.Tensor]:
    """The weights' change under plain gradient descent: exactly the clipped gradient."""
    run: TrainRun = assemble(
        world.job(world.config(training={"max_grad_norm": 1e9}, **sections)), WorkerGroup()
    )
    state = run.state
    state.student.network.double()
    state.optimizer = torch.optim.SGD(state.student.network.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in state.trainable().items()}
    object.__setattr__(run.settings, "learning_rate", 1.0)
    object.__setattr__(run.settings, "warmup_ratio", 0.0)
    train_step(state, plan, run.data.train, run.objective, run.settings, run.group)
    return {name: before[name] - p.detach() for name, p in state.trainable().items()}


def cut(world: Any, sizes: list[int], order: np.ndarray | None = None) -> StepPlan:
    run = assemble(world.job(world.config()), WorkerGroup())
    rows = np.arange(sum(sizes)) if order is None else order
    edges = np.cumsum([0, *sizes])
    micro = [rows[a:b] for a, b in itertools.pairwise(edges)]
    return StepPlan(micro, int(run.data.train.num_loss_tokens[rows].sum()))


@pytest.mark.parametrize("sizes", [[4, 4, 4], [1] * 12, [5, 7], [11, 1]])
def test_any_cut_into_micro_batches_gives_the_same_gradient(world: Any, sizes: list[int]) -> None:
    """Also covers padding: cutting differently pads every row differently."""
    whole = gradient_of(world, cut(world, [12]))
    parts = gradient_of(world, cut(world, sizes))
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(parts[name], gradient, rtol=1e-6, atol=1e-9)


def test_the_order_of_rows_does_not_matter(world: Any) -> None:
    order = np.random.default_rng(1).permutation(12)
    whole, shuffled = gradient_of(world, cut(world, [12])), gradient_of(world, cut(world, [6, 6], order))
    for name, gradient in whole.items():
        torch.testing.assert_close(shuffled[name], gradient, rtol=1e-6, atol=1e-9)


def test_workers_sum_to_the_gradient_of_one(world: Any) -> None:
    """Each worker divides by the tokens of all of them, so their gradients add up, short batches or not."""
    one = gradient_of(world, cut(world, [3, 3, 3, 3]))
    plan = cut(world, [3, 3, 3, 3])
    shares = [StepPlan(plan.micro_batches[rank::2], plan.num_tokens) for rank in range(2)]
    first, second = (gradient_of(world, share) for share in shares)
    for name, gradient in one.items():
        torch.testing.assert_close(first[name] + second[name], gradient, rtol=1e-6, atol=1e-9)


def test_a_worker_without_rows_adds_nothing(world: Any) -> None:
    empty = gradient_of(world, StepPlan([], 10))
    assert all(not gradient.any() for gradient in empty.values())


def test_clipping_bounds_the_step_and_reports_the_norm_before(world: Any) -> None:
    """F23."""
    config = world.config(training={"max_grad_norm": 0.01})
    run = assemble(world.job(config), WorkerGroup())
    run.state.optimizer = torch.optim.SGD(run.state.student.network.parameters(), lr=1.0)
    object.__setattr__(run.settings, "learning_rate", 1.0)
    object.__setattr__(run.settings, "warmup_ratio", 0.0)
    before = [p.detach().clone() for p in run.state.student.network.parameters()]
    result = train_step(
        run.state, run.planner.plan(0, 0), run.data.train, run.objective, run.settings, run.group
    )
    moved = [
        (a - b.detach()).norm() for a, b in zip(before, run.state.student.network.parameters(), strict=True)
    ]
    assert torch.stack(moved).norm() <= 0.0101 < result.grad_norm


def test_float16_scales_the_loss_and_skips_a_step_that_overflows(world: Any) -> None:
    """As on a GPU: the scale cancels out; where it was too large, it is halved and nothing else happens."""

    def step(precision: str, scale: float | None) -> tuple[TrainRun, float]:
        run = assemble(world.job(world.config()), WorkerGroup())
        object.__setattr__(run.settings, "precision", precision)
        if scale is not None:
            run.state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        plan = run.planner.plan(0, 0)
        found = train_step(run.state, plan, run.data.train, run.objective, run.settings, run.group)
        return run, found.grad_norm

    (plain, norm), (half, half_norm) = step("float32", None), step("float16", 2.0**10)
    assert half_norm == pytest.approx(norm, rel=0.02)
    for name, weight in half.state.trainable().items():
        assert weight.dtype == torch.float32
        # AdamW's first step has the learning rate's size everywhere; rounding turns few of its signs.
        assert (weight - plain.state.trainable()[name]).abs().mean() < 1e-4
    start = assemble(world.job(world.config()), WorkerGroup()).state.trainable()
    burst, norm = step("float16", 2.0**60)
    assert norm != norm and burst.state.counters.nonfinite_steps == 1 and burst.state.step == 1
    assert burst.state.scaler.get_scale() == 2.0**59 and not burst.state.optimizer.state
    assert all(torch.equal(weight, start[name]) for name, weight in burst.state.trainable().items())


def test_gradients_are_gone_after_a_step(world: Any) -> None:
    run = assemble(world.job(world.config()), WorkerGroup())
    train_step(run.state, run.planner.plan(0, 0), run.data.train, run.objective, run.settings, run.group)
    assert all(p.grad is None for p in run.state.student.network.parameters())


def test_sums_hold_no_graph(world: Any) -> None:
    """A window of steps must not keep every step's activations alive."""
    run = assemble(world.job(world.config()), WorkerGroup())
    result = train_step(
        run.state, run.planner.plan(0, 0), run.data.train, run.objective, run.settings, run.group
    )
    assert not result.sums_S.requires_grad

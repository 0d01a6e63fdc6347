"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

import torch

from raystill.run.failpoint import failpoint
from raystill.train.batches import Batch, StepPlan, collate
from raystill.train.clock import StepClock
from raystill.train.device import autocast
from raystill.train.examples import ExampleSet
from raystill.train.group import WorkerGroup
from raystill.train.metrics import Totals, named_sums
from raystill.train.objective import Objective
from raystill.train.optimizer import learning_rate_at
from raystill.train.settings import TrainSettings
from raystill.train.sharding import keep_in_step, whole
from raystill.train.spikes import HISTORY, is_spike
from raystill.train.state import TrainState, seed_step
from raystill.train.student import Student


@dataclass(frozen=True)
class StepResult:
    """Sums over all workers (`metrics.SUM_NAMES`), and the gradient's norm before clipping: nan where the
    step was skipped."""

    sums_S: torch.Tensor
    grad_norm: float
    learning_rate: float


def train_step(
    state: TrainState,
    plan: StepPlan,
    examples: ExampleSet,
    objective: Objective,
    settings: TrainSettings,
    group: WorkerGroup,
    clock: StepClock | None = None,
) -> StepResult:
    """Gradient of the mean loss over the step's tokens, clip, update. A non-finite gradient, or one that
    stands far out (`spikes`), leaves no trace but its count.

    Each micro-batch's sum is divided by the tokens of the whole step, on all workers: how rows are cut into
    micro-batches and shared among workers changes nothing. A micro-batch is announced before the backward
    pass of the one before, so that teachers in a process of their own work meanwhile.
    """
    student, totals = state.student, Totals(state.student.device)
    clock = clock or StepClock()
    terms = settings.terms.at(state.step, state.total_steps)
    if settings.balance:
        terms = terms.scaled(state.balance.kd_factor)
    seed_step(settings, state.step, group.rank)
    keep_in_step(student, len(plan.micro_batches), group)
    batches = _collate_all(plan, examples, student, settings, clock)
    for batch, following in pairwise(chain(batches, [None])):
        assert batch is not None
        objective.expect(batch, terms)
        with clock.measure("forward"), autocast(student.device, settings.precision):
            hidden_ND = student.hidden_states(batch.input_ids_BT, batch.loss_index_N, batch.row_lengths)
            loss = objective(hidden_ND, student.head(), batch, terms)
        if following is not None:
            objective.expect(following, terms)
        with clock.measure("backward"):
            state.scaler.scale(loss.sum / plan.num_tokens).backward()  # type: ignore[no-untyped-call]
        totals.add(loss, batch.num_real_tokens, batch.num_raw_tokens, batch.sum_squares)
    parameters = [p for group_ in state.optimizer.param_groups for p in group_["params"]]
    with clock.measure("reduce"):
        group.sum_gradients(parameters)
        group.sum_(totals.sums_S)
    learning_rate = learning_rate_at(settings, state.step, state.total_steps)
    with clock.measure("optimizer"):
        grad_norm = _update(state, parameters, settings, learning_rate, totals)
    state.step += 1
    failpoint("train:step")
    return StepResult(totals.sums_S, grad_norm, learning_rate)


def _collate_all(
    plan: StepPlan, examples: ExampleSet, student: Student, settings: TrainSettings, clock: StepClock
) -> Iterator[Batch]:
    for rows in plan.micro_batches:
        with clock.measure("data"):
            batch = collate(examples, rows, student.pad_id, student.device, packed=settings.packed)
        yield batch


def _update(
    state: TrainState,
    parameters: list[torch.nn.Parameter],
    settings: TrainSettings,
    learning_rate: float,
    totals: Totals,
) -> float:
    """Update the weights unless the step is to be skipped; returns the gradient's norm (nan then)."""
    state.scaler.unscale_(state.optimizer)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    norm = torch.where(torch.isfinite(totals.sums_S[0]), norm, torch.nan)
    # The one place of a step that waits for the device.
    sums = named_sums(totals.sums_S)
    state.counters.positions += int(sums["real"])
    grad_norm = float(norm)
    taken = _is_taken(state, grad_norm, settings)
    if taken:
        if grad_norm > settings.max_grad_norm:  # spares a pass over all gradients where nothing is clipped
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, norm)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        state.optimizer.step()
        state.counters.tokens += int(sums["tokens"])
        if settings.balance and sums["kd_kl"] != 0:  # a ramp from 0 says nothing of the term yet
            state.balance.update(sums["ce"] / sums["tokens"], sums["kd_kl"] / sums["tokens"])
    if state.scaler.is_enabled():
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    return grad_norm if taken else float("nan")


def _is_taken(state: TrainState, norm: float, settings: TrainSettings) -> bool:
    """Whether the step updates the weights; counts why it doesn't."""
    counters = state.counters
    if not math.isfinite(norm):
        counters.nonfinite_steps += 1
        counters.nonfinite_streak += 1
        return False
    counters.nonfinite_streak = 0
    if is_spike(norm, counters.recent_norms, settings.spike_threshold):
        if counters.spike_streak < settings.max_spike_steps:
            counters.spike_steps += 1
            counters.spike_streak += 1
            return False
        counters.recent_norms.clear()
    counters.spike_streak = 0
    counters.recent_norms = [*counters.recent_norms[1 - HISTORY :], norm]
    return True

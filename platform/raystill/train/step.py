"""One optimizer step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from raystill.run.failpoint import failpoint
from raystill.train.batches import StepPlan, collate
from raystill.train.device import autocast
from raystill.train.examples import ExampleSet
from raystill.train.group import WorkerGroup
from raystill.train.metrics import Totals
from raystill.train.objective import Objective
from raystill.train.optimizer import learning_rate_at
from raystill.train.settings import TrainSettings
from raystill.train.state import TrainState, seed_step


@dataclass(frozen=True)
class StepResult:
    """Sums over all workers, and the gradient's norm before clipping: nan where the step was skipped."""

    sums_6: torch.Tensor
    grad_norm: float
    learning_rate: float


def train_step(
    state: TrainState,
    plan: StepPlan,
    examples: ExampleSet,
    objective: Objective,
    settings: TrainSettings,
    group: WorkerGroup,
) -> StepResult:
    """Gradient of the mean loss over the step's tokens, clip, update. A non-finite one leaves no trace.

    Each micro-batch's sum is divided by the tokens of the whole step, on all workers: how rows are cut into
    micro-batches and shared among workers changes nothing.
    """
    student, totals = state.student, Totals(state.student.device)
    seed_step(settings, state.step, group.rank)
    for rows in plan.micro_batches:
        batch = collate(examples, rows, student.pad_id, student.device)
        with autocast(student.device, settings.precision):
            hidden_ND = student.hidden_states(batch.input_ids_BT, batch.loss_index_N)
            loss = objective(hidden_ND, student.head(), batch)
        state.scaler.scale(loss.sum / plan.num_tokens).backward()  # type: ignore[no-untyped-call]
        totals.add(loss, batch.num_real_tokens, batch.num_raw_tokens)
    parameters = [p for group_ in state.optimizer.param_groups for p in group_["params"]]
    group.sum_gradients(parameters)
    group.sum_(totals.sums_6)
    learning_rate = learning_rate_at(settings, state.step, state.total_steps)
    grad_norm = _update(state, parameters, settings.max_grad_norm, learning_rate, totals)
    state.step += 1
    failpoint("train:step")
    return StepResult(totals.sums_6, grad_norm, learning_rate)


def _update(
    state: TrainState,
    parameters: list[torch.nn.Parameter],
    max_norm: float,
    learning_rate: float,
    totals: Totals,
) -> float:
    """Update the weights unless loss or gradient isn't finite; returns the gradient's norm (nan then)."""
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    norm = torch.where(torch.isfinite(totals.sums_6[0]), norm, torch.nan)
    finite = bool(torch.isfinite(norm))
    if finite:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        state.optimizer.step()
        state.counters.nonfinite_streak = 0
        state.counters.tokens += int(totals.sums_6[3])
    else:
        state.counters.nonfinite_steps += 1
        state.counters.nonfinite_streak += 1
    if state.scaler.is_enabled():
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    return float(norm) if finite else float("nan")

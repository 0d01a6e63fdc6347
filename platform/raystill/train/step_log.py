"""Writes the lines of metrics.jsonl as a run goes on."""

from __future__ import annotations

import time
from typing import Any

from raystill.train.assembly import TrainRun
from raystill.train.evaluation import evaluate_loss
from raystill.train.metrics import append_metrics, summarise_window
from raystill.train.step import StepResult


class StepLog:
    """Collects the steps between two lines.

    Their sums live in the run's state, so that a resumed run writes the same lines; the gradient's norm and
    the learning rate are the last step's.
    """

    def __init__(self, run: TrainRun) -> None:
        self._run = run
        self._started = time.monotonic()
        self._last: StepResult | None = None

    def add(self, result: StepResult) -> None:
        """Take in a step; a non-finite one counts only where the loop counts it."""
        self._last = result
        if result.grad_norm == result.grad_norm:  # not nan
            self._run.state.window_sums_6 += result.sums_6.cpu()

    def write(self) -> dict[str, Any]:
        """One line for the steps since the last; returns its values."""
        run, state = self._run, self._run.state
        seconds = time.monotonic() - self._started
        values: dict[str, Any] = summarise_window(
            state.window_sums_6, seconds, run.settings.terms.kl_weight > 0
        )
        if self._last is not None and self._last.grad_norm == self._last.grad_norm:
            values |= {"train/grad_norm": self._last.grad_norm, "train/lr": self._last.learning_rate}
        values |= {"train/nonfinite_steps": state.counters.nonfinite_steps, "total_steps": state.total_steps}
        state.window_sums_6.zero_()
        self._started = time.monotonic()
        return self._append(values)

    def write_evaluation(self) -> dict[str, Any]:
        """Measure the held-out loss and write it as a line; the time it takes is no training time."""
        run = self._run
        paused = time.monotonic()
        values = evaluate_loss(run.state.student, run.data.held_out, run.objective, run.settings, run.group)
        self._started += time.monotonic() - paused
        return self._append(values) if values else {}

    def _append(self, values: dict[str, Any]) -> dict[str, Any]:
        run = self._run
        if run.group.is_first:
            append_metrics(run.job.paths.training_metrics(run.job.stage), run.state.step, values)
        return values

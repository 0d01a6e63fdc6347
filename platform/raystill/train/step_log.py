"""Writes the lines of metrics.jsonl as a run goes on, and passes them to an experiment tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raystill.train.assembly import TrainRun
from raystill.train.evaluation import evaluate_loss
from raystill.train.flops import measure_peak, measure_size
from raystill.train.memory import peak_memory_gb
from raystill.train.metrics import append_metrics, named_sums, summarise_window
from raystill.train.step import StepResult
from raystill.train.trackers import BackgroundTracker, TrackedRun, default_experiment, open_tracker
from raystill.train.trl_names import name_as_trl


class StepLog:
    """Collects the steps between two lines.

    Their sums live in the run's state, so that a resumed run writes the same lines; the gradient's norm and
    the learning rate are the last step's. Rates and shares of time are those of this process.
    """

    def __init__(self, run: TrainRun) -> None:
        self._run = run
        self._last: StepResult | None = None
        self._here_S = run.state.window_sums_S.new_zeros(run.state.window_sums_S.shape)
        self._size = measure_size(run.state.student)
        self.peak_flops = measure_peak(run.state.student.device, run.settings.precision) * run.group.size
        self._tracker = _open_tracker(run) if run.group.is_first else None
        self.clock = run.clock
        self.clock.read()  # what came before the first step is no training time

    def add(self, result: StepResult) -> None:
        """Take in a step; a skipped one counts only where the loop counts it."""
        self._last = result
        if result.grad_norm == result.grad_norm:  # not nan
            sums_S = result.sums_S.cpu()
            self._run.state.window_sums_S += sums_S
            self._here_S += sums_S

    def write(self) -> dict[str, Any]:
        """One line for the steps since the last; returns its values."""
        run, state = self._run, self._run.state
        seconds, shares = self.clock.read()
        values: dict[str, Any] = summarise_window(
            named_sums(state.window_sums_S), run.settings.terms.uses_teacher
        )
        if values:
            values |= self._rates(seconds) | shares | {"time/seconds": seconds}
            values["ckpt/blocked_ms"] = round(1000.0 * shares["time/save"] * seconds, 3)
            values["mem/peak_gb"] = round(peak_memory_gb(run.state.student.device), 4)
        if self._last is not None and self._last.grad_norm == self._last.grad_norm:
            values |= {"train/grad_norm": self._last.grad_norm, "train/lr": self._last.learning_rate}
        counters = state.counters
        values |= {
            "train/nonfinite_steps": counters.nonfinite_steps,
            "train/spike_steps": counters.spike_steps,
            "total_steps": state.total_steps,
        }
        values |= run.source.metrics()
        if run.job.config.trackers.trl_names:
            values |= name_as_trl(values, named_sums(state.window_sums_S), counters.positions)
        state.window_sums_S.zero_()
        self._here_S.zero_()
        return self._append(values)

    def write_evaluation(self) -> dict[str, Any]:
        """Measure the held-out loss and write it as a line; the time it takes is no training time."""
        run = self._run
        with self.clock.paused():
            values = evaluate_loss(
                run.state.student, run.data.held_out, run.objective, run.settings, run.group
            )
        return self._append(values) if values else {}

    def close(self, model: Path | None = None) -> int:
        """End the tracker's run, with the trained `model` where there is one; returns its failed calls."""
        tracker = self._tracker
        if tracker is None:
            return 0
        tracker.close(model)
        if tracker.failures:
            self._run.notes.append(
                f"{self._run.settings.report_to} missed {tracker.failures} calls; the first: {tracker.reason}"
            )
        return tracker.failures

    def _rates(self, seconds: float) -> dict[str, float]:
        """What this process did since the last line, per second: a resumed window began in another one."""
        sums = named_sums(self._here_S)
        return {
            "train/tok_s_useful": sums["real"] / seconds,
            "train/tok_s_raw": sums["raw"] / seconds,
            "train/mfu": self._size.count_needed(sums) / seconds / self.peak_flops,
            "train/mfu_6nd": self._size.count_6nd(sums) / seconds / self.peak_flops,
        }

    def _append(self, values: dict[str, Any]) -> dict[str, Any]:
        run = self._run
        if run.group.is_first:
            append_metrics(run.job.paths.training_metrics(run.job.stage), run.state.step, values)
        if self._tracker is not None:
            self._tracker.log(run.state.step, values)
        return values


def _open_tracker(run: TrainRun) -> BackgroundTracker:
    settings, state = run.settings, run.state
    parameters: dict[str, str | int | float] = {
        "stage": settings.stage,
        "total_steps": state.total_steps,
        "rows_per_step": settings.rows_per_step,
        "learning_rate": settings.learning_rate,
        "precision": settings.precision,
        "packed": str(settings.packed),
        "parameters": state.student.num_parameters(),
        "parameters_trained": state.student.num_parameters(trainable_only=True),
        "num_workers": run.group.size,
        **settings.terms.describe(),
    }
    tracked = TrackedRun(
        experiment=settings.experiment or default_experiment(run.job.config.run.name, settings.label),
        record=run.job.paths.tracker_record(run.job.stage),
        parameters=parameters,
        data={
            "store": str(run.job.paths.store),
            "fingerprint": run.data_fingerprint,
            "counts": run.data.counts,
        },
        first_step=state.step,
    )
    return open_tracker(settings.report_to, tracked)

"""The driver's eyes on Ray Tune: results of trials that were ended from outside, disk, and the live table."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback

from raystill.cluster.run_gauges import RunGauges
from raystill.config.tune import TuneSection
from raystill.errors import DiskFault
from raystill.run.events import EventLog
from raystill.run.paths import RunPaths, StageName
from raystill.run.sweep_paths import SweepPaths, TrialPaths
from raystill.tune.concurrency import Concurrency
from raystill.tune.records import (
    TrialRecord,
    ask_to_stop,
    finish_trial,
    is_asked_to_stop,
    load_trials,
)
from raystill.tune.retention import tidy_trials, tree_bytes
from raystill.tune.schedule import TrialSource

_LONGEST_REASON = 300
_GB = 10**9
# Between two looks at a sweep's disk while its trials write.
_TIDY_SECONDS = 10.0
_LOOK_SECONDS = 0.1


class TrialWatch(Callback):  # type: ignore[misc]
    """Called by Ray Tune in the driver, between its own steps."""

    def __init__(
        self,
        sweep: SweepPaths,
        run: RunPaths,
        stage: StageName,
        tune: TuneSection,
        source: TrialSource,
        concurrency: Concurrency,
        watch: Any,
    ) -> None:
        """`watch` gets all trials and the concurrency whenever something has changed."""
        self._sweep, self._run, self._stage, self._tune = sweep, run, stage, tune
        self._source, self._concurrency, self._watch = source, concurrency, watch
        self._running: dict[str, float] = {}
        self._next_tidy = 0.0
        self._is_over = False
        # Why the sweep ends before its trials do: they go on when it is started again.
        self.fault: DiskFault | None = None
        self._log = EventLog(sweep.log, "tune")
        self._gauges = RunGauges(sweep.root.name)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune writes its state away, and the trials on disk are ours."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins or goes on."""
        self._running.setdefault(trial.trial_id, time.monotonic())
        self._log.emit("trial_started", trial=self._source.numbers[trial.trial_id])
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported: it has saved, too."""
        self._log.emit(
            "trial_reported",
            trial=self._source.numbers[trial.trial_id],
            step=result.get("step"),
            score=result.get("score"),
        )
        records = self._show()
        if self._tune.max_gb is not None and time.monotonic() >= self._next_tidy:
            self._tidy(records)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial is over: by itself, then it wrote its result, or ended by the scheduler."""
        self._end(trial.trial_id, "stopped", "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial died, and died again when it was started once more.

        Where the disk was full it is no fault of the trial: it stays unfinished, and no other one begins.
        """
        cause = getattr(trial.get_pickled_error(), "cause", None)
        if isinstance(cause, DiskFault):
            self.fault = self.fault or cause
            self._source.close()
        text = str(trial.get_error() or "its process died").strip().splitlines()[-1]
        self._end(trial.trial_id, "failed", text[:_LONGEST_REASON])

    def stop_trials(self, seconds: float) -> None:
        """Have the trials that run save the step they are at, and wait for that, so many seconds at most."""
        numbers = [self._source.numbers[trial_id] for trial_id in self._running]
        for number in numbers:
            ask_to_stop(self._sweep, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(is_asked_to_stop(self._sweep, one) for one in numbers):
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Close the sweep's log."""
        self._log.__exit__(None, None, None)

    def _end(self, trial_id: str, outcome: Any, problem: str) -> None:
        number = self._source.numbers[trial_id]
        seconds = time.monotonic() - self._running.pop(trial_id, time.monotonic())
        if self.fault is None:
            finish_trial(self._sweep, number, outcome, seconds=round(seconds, 3), problem=problem)
        records = self._show()
        own = next(record for record in records if record.number == number)
        self._log.emit("trial_finished", trial=number, outcome=own.outcome, problem=own.problem)
        self._tidy(records)

    def _tidy(self, records: list[TrialRecord]) -> None:
        """Keep the sweep within its bytes, as far as trials that are over can give way."""
        self._next_tidy = time.monotonic() + _TIDY_SECONDS
        running = {self._source.numbers[other] for other in self._running}
        paths = {
            record.number: TrialPaths.of_trial(self._run, self._sweep, record.number, self._stage)
            for record in records
        }
        limit = self._tune.max_gb
        lost = tidy_trials(self._sweep, records, running, paths, self._tune.mode, limit)
        if lost:
            self._log.emit("checkpoints_deleted", trials=lost, reason="tune.max_gb")
        used = 0.0 if limit is None else tree_bytes(self._sweep.root) / _GB
        is_over = limit is not None and used > limit
        if is_over and not self._is_over:
            self._log.emit(
                "warning",
                message=f"the best trial and those that run take {used:.3g} GB, more than tune.max_gb "
                f"({limit:g}); a smaller training.checkpoint_cleanup.max_checkpoints or tune.max_concurrent "
                "takes less",
            )
        self._is_over = is_over

    def _show(self) -> list[TrialRecord]:
        records = load_trials(self._sweep)
        self._gauges.set_trials(len(self._running), [record.outcome for record in records])
        if self._watch is not None:
            self._watch(records, self._concurrency)
        return records

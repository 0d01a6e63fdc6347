"""Experiment trackers: metrics.jsonl always, MLflow or TensorBoard beside it where `report_to` says so.

A tracker runs in a thread of its own behind a bounded queue: one that is slow or fails never holds up or
stops training. What it missed is counted, and the first failure's reason is told once, at the end.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from raystill.config.training import Experiment, ReportTo
from raystill.errors import ConfigError, EnvironmentFault

_QUEUE_LENGTH = 1000
_CLOSE_SECONDS = 600.0
_FAILED_SECONDS = 10.0
_PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboardX"}


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told at the start. `record` is a file of its own, where it may note its run's id."""

    experiment: Experiment
    record: Path
    parameters: Mapping[str, str | int | float]
    data: Mapping[str, Any]
    first_step: int


class Tracker(Protocol):
    """Where metrics go; every method may raise what it likes."""

    def start(self, run: TrackedRun) -> None:
        """Open a new run, or the one that an interrupted training began."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of a step."""

    def finish(self, model: Path | None) -> None:
        """Close the run; `model` is the directory of the trained model, None where there is none."""


def require_tracker(report_to: ReportTo, where: str) -> None:
    """Raise ConfigError or EnvironmentFault, before training, if `report_to` can't be had here."""
    if report_to == "wandb":
        raise ConfigError(
            "Weights & Biases keeps runs on its own servers, and raystill has no client for it",
            where=where,
            fix="use mlflow or tensorboard; metrics.jsonl is always written",
        )
    package = _PACKAGES.get(report_to)
    if package is not None and find_spec(package) is None:
        raise EnvironmentFault(
            f"report_to is {report_to}, and the package {package} is not installed",
            where=where,
            fix="pip install 'raystill[trackers]', or set report_to: none",
        )


def default_experiment(name: str, run_name: str) -> Experiment:
    """The names of a run whose configuration gives none."""
    return Experiment(name=name, run_name=run_name)


def open_tracker(report_to: ReportTo, run: TrackedRun) -> BackgroundTracker:
    """The tracker of one worker, already told of `run`; with `none` it takes everything and does nothing."""
    return BackgroundTracker(_make(report_to), run)


def _make(report_to: ReportTo) -> Tracker | None:
    if report_to == "mlflow":
        from raystill.train.mlflow_tracker import MlflowTracker

        return MlflowTracker()
    if report_to == "tensorboard":
        from raystill.train.tensorboard_tracker import TensorboardTracker

        return TensorboardTracker()
    return None


class BackgroundTracker:
    """Hands everything to a `Tracker` in order; counts what failed or found no room."""

    def __init__(self, tracker: Tracker | None, run: TrackedRun) -> None:
        self.failures = 0
        self.reason = ""
        self._tracker = tracker
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        if tracker is not None:
            self._thread.start()
            self._put(lambda: tracker.start(run))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Pass on the numbers among `values`."""
        tracker = self._tracker
        if tracker is not None:
            numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
            self._put(lambda: tracker.log(step, numbers))

    def close(self, model: Path | None = None) -> None:
        """Finish the run and wait until everything is passed on: ten minutes at most, ten seconds where
        training failed (`model` is None)."""
        tracker = self._tracker
        if tracker is None:
            return
        patience = _CLOSE_SECONDS if model is not None else _FAILED_SECONDS
        self._put(lambda: tracker.finish(model))
        try:
            self._waiting.put(None, timeout=patience)
        except queue.Full:
            self._fail("it was still busy long after the end of training")
            return
        self._thread.join(patience)
        if self._thread.is_alive():
            self._fail("it was still busy long after the end of training")

    def _put(self, call: Callable[[], None]) -> None:
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._fail(f"it was more than {_QUEUE_LENGTH} calls behind")

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            try:
                call()
            except Exception as error:  # noqa: BLE001 (whatever a tracker raises, training goes on)
                first_line = next(iter(str(error).strip().splitlines()), "")
                self._fail(f"{type(error).__name__}: {first_line}"[:300])

    def _fail(self, reason: str) -> None:
        self.failures += 1
        self.reason = self.reason or reason

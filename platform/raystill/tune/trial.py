"""The training of one trial, in the process that Ray Tune gives it: the same loop, reported elsewhere."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raystill.checkpoint.store import latest_valid
from raystill.config.schema import Config
from raystill.config.tune import TuneSection
from raystill.config.worker_range import worker_range
from raystill.errors import ConfigError, DataError, DivergenceError
from raystill.run.paths import RunPaths
from raystill.run.publish import publish_directory
from raystill.run.remote import open_place
from raystill.run.sweep_paths import SweepPaths, TrialPaths
from raystill.train.assembly import TrainJob
from raystill.train.group import WorkerGroup
from raystill.train.settings import TrainStageName
from raystill.train.worker import train_worker
from raystill.tune.entry import SweepJob
from raystill.tune.records import Report, append_report, change_params
from raystill.tune.trial_config import build_trial_config

# What Ray Tune is told: values, and the checkpoint that another trial may go on from.
Tell = Callable[[dict[str, Any], str | None], None]

_POINTER = "checkpoint.json"


def train_trial(job: SweepJob, sweep: SweepPaths, number: int, params: dict[str, Any]) -> float:
    """Train; returns the seconds of the steps alone, without what was loaded before them."""
    base = Config.model_validate_json(job.config)
    paths = trial_paths(job, sweep, number)
    if job.hands_on:
        _adopt(sweep, number, paths, params, job.stage)
    most = worker_range(base.training)[1]
    if most > 1:
        from raystill.tune.trial_group import train_together

        return train_together(job, number, params, most, tell_tune)
    return train_alone(job, number, params, WorkerGroup(), tell_tune)


def trial_paths(job: SweepJob, sweep: SweepPaths, number: int) -> TrialPaths:
    """The paths of trial `number`."""
    run = RunPaths(root=Path(job.root), store=open_place(job.store))
    return TrialPaths.of_trial(run, sweep, number, job.stage)


def train_alone(job: SweepJob, number: int, params: dict[str, Any], group: WorkerGroup, tell: Tell) -> float:
    """The work of one worker of a trial; the first of the group tells. Returns the seconds of its steps."""
    base = Config.model_validate_json(job.config)
    assert base.tune is not None
    sweep = SweepPaths(Path(job.sweep))
    paths = trial_paths(job, sweep, number)
    config = build_trial_config(base, job.stage, params)
    section = config.train.sft if job.stage == "sft" else config.train.distillation
    assert section is not None
    total = section.steps or config.training.steps
    reporter = TrialReporter(sweep, number, base.tune, total, paths, hands_on=job.hands_on, tell=tell)
    device = "cuda:0" if job.device == "cuda" else "cpu"
    train_job = TrainJob(config, paths, job.stage, device, base.tune.resources.cpus)
    told = reporter if group.is_first else _Silent()
    # What a trial hands on must be there when Ray Tune hears of it.
    summary = train_worker(train_job, group, told, reports_saved=job.hands_on)
    if group.is_first:
        reporter.require_reports()
    return float(summary["metrics"]["loop_seconds"])


class _Silent:
    """The reporter of workers that are not the first."""

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        """Nothing: the first worker reports."""


class TrialReporter:
    """Passes the sweep's metric to the trial's own record and to Ray Tune, which may end the trial there."""

    def __init__(
        self,
        sweep: SweepPaths,
        number: int,
        tune: TuneSection,
        total_steps: int | None,
        paths: TrialPaths,
        *,
        hands_on: bool,
        tell: Tell,
    ) -> None:
        """`total_steps` None: known once training says it. `tell` gets what Ray Tune is to know."""
        self._sweep, self._number, self._tune, self._paths = sweep, number, tune, paths
        self._total_steps = total_steps
        self._hands_on = hands_on
        self._tell = tell
        self._seen: set[str] = set()
        self._reports = 0

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        """Report the sweep's metric where this step has it. Raises DivergenceError if it isn't finite."""
        self._seen |= metrics.keys()
        self._total_steps = self._total_steps or metrics.get("total_steps")
        value = metrics.get(self._tune.metric)
        if value is None or not self._total_steps:
            return
        if not math.isfinite(value):
            raise DivergenceError(f"{self._tune.metric} is {value} at step {step}")
        percent = round(100.0 * step / self._total_steps, 3)
        passes = int(metrics.get("teacher_passes", 0))
        append_report(self._sweep, self._number, Report(step, percent, float(value), passes))
        self._reports += 1
        newest = None
        if self._hands_on:
            newest = str(latest_valid(self._paths.checkpoints(self._paths.tuned)).path)
        self._tell({"step": step, "percent": percent, "score": float(value), "number": self._number}, newest)

    def require_reports(self) -> None:
        """Raises ConfigError if the whole trial never had the sweep's metric."""
        if self._reports == 0:
            known = ", ".join(sorted(name for name in self._seen if "/" in name))
            raise ConfigError(
                f"no report had {self._tune.metric}; there were: {known or 'none'}",
                where="tune.metric",
                fix="choose one of those",
            )


def tell_tune(values: dict[str, Any], checkpoint: str | None) -> None:
    """Report to Ray Tune, with a pointer to a checkpoint where trials go on from one another's."""
    from ray import tune

    if checkpoint is None:
        tune.report(values)
        return
    with tempfile.TemporaryDirectory(prefix="raystill-trial-") as folder:
        pointer = {"number": values["number"], "checkpoint": checkpoint}
        (Path(folder) / _POINTER).write_text(json.dumps(pointer), encoding="utf-8")
        tune.report(values, checkpoint=tune.Checkpoint.from_directory(folder))


def _adopt(
    sweep: SweepPaths, number: int, paths: TrialPaths, params: dict[str, Any], stage: TrainStageName
) -> None:
    """Where Ray Tune hands this trial another one's checkpoint, make that the one to go on from."""
    from ray import tune

    handed = tune.get_checkpoint()
    if handed is None:
        return
    with handed.as_directory() as folder:
        pointer = json.loads((Path(folder) / _POINTER).read_text(encoding="utf-8"))
    donor = int(pointer["number"])
    if donor == number:
        return
    source = Path(pointer["checkpoint"])
    if not source.is_dir():  # the donor has gone on and let it go: its newest is later, and as good
        newest = latest_valid(sweep.trial(donor) / source.parent.name).path
        if newest is None:
            raise DataError("the trial to go on from has no checkpoint", where=str(sweep.trial(donor)))
        source = newest
    with publish_directory(paths.checkpoints(stage)) as temporary:
        shutil.copytree(source, temporary / source.name, copy_function=os.link)
    change_params(sweep, number, params, donor=donor, step=int(source.name.rpartition("-")[2]))

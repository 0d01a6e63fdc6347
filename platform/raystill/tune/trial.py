"""One trial, in the process that Ray Tune gives it: the same loop, with another place for reports."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.checkpoint.store import latest_valid
from raystill.config.contradictions import find_contradictions
from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config
from raystill.config.tune import TuneSection
from raystill.config.tune_contradictions import put_value
from raystill.errors import ConfigError, DataError, DivergenceError, RaystillError
from raystill.run.paths import RunPaths
from raystill.run.publish import publish_directory
from raystill.run.remote import open_place
from raystill.run.sweep_paths import SweepPaths, TrialPaths
from raystill.train.assembly import TrainJob
from raystill.train.group import WorkerGroup
from raystill.train.settings import TrainStageName
from raystill.train.worker import train_worker
from raystill.tune.records import Report, append_report, change_params, find_trial, finish_trial

_POINTER = "checkpoint.json"
_LONGEST_REASON = 300


@dataclass(frozen=True)
class SweepJob:
    """What every trial of a sweep needs to know; plain data, so it crosses process boundaries.

    `config` is the whole configuration as JSON; `hands_on` says that trials go on from one another's
    checkpoints.
    """

    config: str
    root: str
    store: str
    sweep: str
    stage: TrainStageName
    device: str
    hands_on: bool


def run_trial(sampled: dict[str, Any], job: SweepJob) -> None:
    """Train one trial to its end. What is wrong with it becomes its result, and harms no other trial."""
    from ray import tune

    sweep = SweepPaths(Path(job.sweep))
    number = find_trial(sweep, tune.get_context().get_trial_id())
    started = time.monotonic()
    try:
        train_seconds = _train(job, sweep, number, sampled["slot"]["params"])
    except RaystillError as error:
        problem = error.what.splitlines()[0][:_LONGEST_REASON]
        finish_trial(sweep, number, "failed", seconds=time.monotonic() - started, problem=problem)
        return
    finish_trial(sweep, number, "complete", seconds=time.monotonic() - started, train_seconds=train_seconds)


def build_trial_config(base: Config, stage: TrainStageName, params: dict[str, Any]) -> Config:
    """The configuration of a trial: the base with its parameters, reports and threads.

    Raises ConfigError where the parameters contradict one another.
    """
    assert base.tune is not None
    plain = apply_params(base, params).model_dump(mode="json")
    section = plain["train"]["sft" if stage == "sft" else "distillation"]
    every = report_interval(base, stage)
    section["save_steps"] = section["logging_steps"] = every
    if base.tune.metric.startswith("eval/"):
        section["eval_strategy" if stage == "sft" else "evaluation_strategy"] = "steps"
    plain["training"]["cpus_per_worker"] = base.tune.resources.cpus
    return Config.model_validate(plain)


def apply_params(base: Config, params: dict[str, Any]) -> Config:
    """The base configuration with a trial's parameters and without the sweep; ConfigError if they clash."""
    plain = base.model_copy(update={"tune": None}).model_dump(mode="json")
    for path, value in params.items():
        plain = put_value(plain, path, value)
    config = Config.model_validate(plain)
    problems = find_contradictions(LoadedConfig(config))
    if problems:
        raise ConfigError(problems[0].what, problems[0].where, problems[0].fix, problems=tuple(problems))
    return config


def report_interval(config: Config, stage: TrainStageName) -> int:
    """Optimizer steps between two reports of a trial."""
    tune = config.tune or TuneSection()
    section = config.train.sft if stage == "sft" else config.train.distillation
    assert section is not None
    steps = section.steps or config.training.steps
    if tune.report_every is not None:
        return tune.report_every
    return max(1, steps // 10) if steps else section.save_steps or config.training.save_every


def _train(job: SweepJob, sweep: SweepPaths, number: int, params: dict[str, Any]) -> float:
    """Train; returns the seconds that the loop took after everything was loaded."""
    base = Config.model_validate_json(job.config)
    assert base.tune is not None
    run = RunPaths(root=Path(job.root), store=open_place(job.store))
    paths = TrialPaths.of_trial(run, sweep, number, job.stage)
    config = build_trial_config(base, job.stage, params)
    if job.hands_on:
        _adopt(sweep, number, paths, params, job.stage)
    section = config.train.sft if job.stage == "sft" else config.train.distillation
    assert section is not None
    reporter = TrialReporter(
        sweep, number, base.tune, section.steps or config.training.steps, paths, hands_on=job.hands_on
    )
    device = "cuda:0" if job.device == "cuda" else "cpu"
    trained = TrainJob(config, paths, job.stage, device, base.tune.resources.cpus)
    # What a trial hands on must be there when Ray Tune hears of it.
    train_worker(trained, WorkerGroup(0, 1), reporter, reports_saved=job.hands_on)
    reporter.require_reports()
    return time.monotonic() - reporter.started


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
    ) -> None:
        """`total_steps` None: known once training says it."""
        self._sweep, self._number, self._tune, self._paths = sweep, number, tune, paths
        self._total_steps = total_steps
        self._hands_on = hands_on
        self._seen: set[str] = set()
        self._reports = 0
        self.started = time.monotonic()

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
        append_report(self._sweep, self._number, Report(step, percent, float(value)))
        self._reports += 1
        self._send({"step": step, "percent": percent, "score": float(value), "number": self._number})

    def require_reports(self) -> None:
        """Raises ConfigError if the whole trial never had the sweep's metric."""
        if self._reports == 0:
            known = ", ".join(sorted(name for name in self._seen if "/" in name))
            raise ConfigError(
                f"no report had {self._tune.metric}; there were: {known or 'none'}",
                where="tune.metric",
                fix="choose one of those",
            )

    def _send(self, values: dict[str, Any]) -> None:
        from ray import tune

        if not self._hands_on:
            tune.report(values)
            return
        newest = latest_valid(self._paths.checkpoints(self._paths.tuned)).path
        with tempfile.TemporaryDirectory(prefix="raystill-trial-") as folder:
            pointer = {"number": self._number, "checkpoint": str(newest)}
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

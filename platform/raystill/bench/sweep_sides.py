"""The sides of the sweep benchmark, each in its own process.

`python -m raystill.bench.sweep_sides SIDE CONFIG` searches what CONFIG says and prints one JSON object: the
wall time, how many trials ran at once, and of every trial its last loss and its seconds of training.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from raystill.checkpoint.store import list_checkpoints
from raystill.config.load import load_config
from raystill.config.schema import Config
from raystill.config.tune import TuneSection
from raystill.run.paths import RunPaths
from raystill.run.sweep_paths import SweepPaths, TrialPaths
from raystill.train.metrics import iter_metrics
from raystill.train.settings import TrainStageName

STAGE: TrainStageName = "distill"
# Between the milestones at 10 % and at 100 %.
_MEASURED_SHARE = 0.9
_DRIVER_PLACE = "driver"


def run_ours(config: Path) -> dict[str, Any]:
    """`raystill tune`."""
    from raystill.tune.sweep import run_sweep

    started = time.monotonic()
    result = run_sweep(load_config([config]))
    wall = time.monotonic() - started
    paths = RunPaths.from_config(load_config([config]).config)
    trials = {
        str(trial.number): TrialPaths.of_trial(paths, result.paths, trial.number, STAGE)
        for trial in result.trials
    }
    return describe(wall, result.concurrency.trials, trials)


def run_nested(config: Path) -> dict[str, Any]:
    """Tune's trials are drivers with Ray's default of one CPU; each starts a TorchTrainer."""
    cores = os.cpu_count() or 1
    return _run_nested(config, "default", {"CPU": 1.0}, concurrent=max(1, cores // 2))


def run_nested_idle(config: Path) -> dict[str, Any]:
    """The same where drivers reserve nothing: a training worker per core."""
    # Tune refuses a trial that reserves nothing at all, so a driver takes a place of its own kind.
    return _run_nested(config, "idle", {_DRIVER_PLACE: 1.0}, concurrent=os.cpu_count() or 1)


def _run_nested(config: Path, drivers: str, held: dict[str, float], concurrent: int) -> dict[str, Any]:
    from raystill.tune.space import plan_params

    started = time.monotonic()
    base = load_config([config]).config
    params = plan_params(cast(TuneSection, base.tune))
    side = f"nested-{drivers}"
    _fit(config, side, held, concurrent, len(params))
    wall = time.monotonic() - started
    trials = {str(number): _nested_paths(base, side, number) for number in range(len(params))}
    return describe(wall, concurrent, trials)


def _fit(config: Path, side: str, held: dict[str, float], concurrent: int, num_trials: int) -> None:
    """Tune's search; `held` is what the driver of a trial reserves."""
    import ray
    from ray import tune

    place = tempfile.mkdtemp(prefix="rs-", dir="/tmp")
    cores = max(os.cpu_count() or 1, 2)  # a driver and its worker
    ray.init(
        address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False,
        object_store_memory=80 * 2**20, _temp_dir=place, resources={_DRIVER_PLACE: concurrent},
    )  # fmt: skip
    settings = {"config": str(config), "side": side, "storage": str(config.parent / f"ray-{side}")}
    try:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(_nested_trial, settings=settings), held),
            param_space={"number": tune.grid_search(list(range(num_trials)))},
            tune_config=tune.TuneConfig(metric="score", mode="min", max_concurrent_trials=concurrent),
            run_config=tune.RunConfig(name="naive", storage_path=settings["storage"], verbose=0),
        ).fit()
    finally:
        ray.shutdown()
        shutil.rmtree(place, ignore_errors=True)


def _nested_trial(sampled: dict[str, Any], settings: dict[str, str]) -> None:
    """A Tune trial that drives Ray Train, as Ray's documentation has it."""
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        _nested_worker,
        train_loop_config={**settings, "number": sampled["number"]},
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name=f"trial-{sampled['number']}",
            storage_path=settings["storage"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def _nested_worker(settings: dict[str, Any]) -> None:
    from raystill.train.assembly import TrainJob
    from raystill.train.group import WorkerGroup
    from raystill.train.worker import train_worker
    from raystill.tune.space import plan_params
    from raystill.tune.trial_config import build_trial_config

    base = load_config([Path(settings["config"])]).config
    tune = cast(TuneSection, base.tune)
    config = build_trial_config(base, STAGE, plan_params(tune)[settings["number"]])
    paths = _nested_paths(base, settings["side"], settings["number"])
    job = TrainJob(config, paths, STAGE, "cpu", tune.resources.cpus)
    train_worker(job, WorkerGroup(), _NestedReporter(tune.metric))


class _NestedReporter:
    """Tells Ray Train, whose callback tells Ray Tune."""

    def __init__(self, metric: str) -> None:
        self._metric = metric

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        """Report the metric where this step has it."""
        import ray.train

        if self._metric in metrics:
            ray.train.report({"step": step, "score": float(metrics[self._metric])})


def _nested_paths(base: Config, side: str, number: int) -> TrialPaths:
    """A trial of its own: nothing is shared with the others."""
    run = RunPaths.from_config(base)
    paths = TrialPaths.of_trial(run, SweepPaths.of(run, side), number, STAGE)
    return replace(paths, examples=paths.trial / "examples")


def describe(wall: float, concurrent: int, trials: dict[str, TrialPaths]) -> dict[str, Any]:
    """What a side did, from what its trials left on the disk."""
    return {
        "wall_s": wall,
        "concurrent": concurrent,
        "losses": {name: _last_loss(paths) for name, paths in trials.items()},
        "train_s": {name: training_seconds(paths.checkpoints(STAGE)) for name, paths in trials.items()},
    }


def _last_loss(paths: TrialPaths) -> float:
    return float(
        [line for line in iter_metrics(paths.training_metrics(STAGE)) if "eval/loss" in line][-1]["eval/loss"]
    )


def training_seconds(checkpoints: Path) -> float:
    """Seconds of a trial's steps, from the times at which its first and its last milestone were saved."""
    saved = list_checkpoints(checkpoints)
    first, last = ((path / "manifest.json").stat().st_mtime for path in (saved[0], saved[-1]))
    return (last - first) / _MEASURED_SHARE


SIDES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ours": run_ours,
    "nested TorchTrainer": run_nested,
    "nested, idle drivers": run_nested_idle,
}

if __name__ == "__main__":
    # Workers import this module by its name, which `__main__` isn't.
    from raystill.bench import sweep_sides

    side, config = sys.argv[1:]
    sys.stdout.write(json.dumps(sweep_sides.SIDES[side](Path(config))) + "\n")

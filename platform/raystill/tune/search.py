"""The search of a sweep: Ray Tune with our trials, and the resources that they reserve."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raystill.cluster.demand import Demand, ask_autoscaler, find_unmet, load_capacity
from raystill.cluster.disk_monitor import watch_disks
from raystill.cluster.ray_session import ray_session
from raystill.config.device_type import choose_device_type
from raystill.config.node_labels import is_cluster_joined, node_labels
from raystill.config.schema import Config
from raystill.config.tune import TuneSection
from raystill.config.worker_range import worker_range
from raystill.errors import DiskFault, EnvironmentFault
from raystill.run.environment import default_environment
from raystill.run.interrupts import install_sigterm
from raystill.run.paths import RunPaths, StageName
from raystill.run.publish import discard_directory, make_directory
from raystill.run.stage import Stage
from raystill.run.sweep_paths import SweepPaths
from raystill.train.settings import TrainStageName
from raystill.tune.concurrency import Concurrency, choose_concurrency, worker_resources
from raystill.tune.entry import SweepJob, run_trial
from raystill.tune.records import TrialRecord, forget_stop_request
from raystill.tune.space import plan_params
from raystill.tune.warm_up import finish_warm_up, start_warm_up

if TYPE_CHECKING:
    from raystill.tune.watching import TrialWatch

# How often a trial is started again whose process died: on a Ray of our own, and where nodes come and go.
_RESTARTS, _RESTARTS_ON_CLUSTER = 1, 8
_ANSWER_SECONDS = 20.0
# How long an interrupted sweep waits for its trials to save.
_STOP_SECONDS = 20.0
# Answers about a sweep while it runs: its trials as they are on disk.
Watch = Callable[[list[TrialRecord], Concurrency], None]

# Ray's settings for a sweep, read from the driver's environment.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A local Ray would start a process per logical CPU, while those that trials need are starting.
    "RAY_prestart_worker_first_driver": "0",
}


def search(
    config: Config,
    stage: Stage,
    run: RunPaths,
    sweep: SweepPaths,
    earlier: list[TrialRecord],
    begin: Callable[[], None],
    watch: Watch | None,
) -> Concurrency:
    """Train the trials that `earlier` doesn't have, on Ray; what came of them is on the disk.

    `begin` is called once nothing can be refused any more. Raises EnvironmentFault where not one trial fits,
    DiskFault where a trial had to stop for want of room, and what the training stage's preflight raises.
    """
    tune = cast(TuneSection, config.tune)
    planned = tune.num_samples if tune.search == "optuna" else len(plan_params(tune))
    done = sum(record.outcome != "unfinished" for record in earlier)
    if done >= planned:
        return Concurrency(0, "trials")
    with default_environment(_ENVIRONMENT), ray_session(config), watch_disks(config, run):
        import ray

        install_sigterm()  # Ray installs its own handler when it starts
        available, can_grow = _available()
        device = choose_device_type(config, available.get("GPU", 0.0), can_grow=can_grow)
        each = worker_resources(tune, device)
        workers = worker_range(config.training)[1]
        wanted = {name: amount * workers for name, amount in each.items()}
        if can_grow:  # Ray Tune asks for the nodes of all trials that may train at once
            _require_growth(stage.name, each, workers, node_labels(config, stage.name))
            wanted = {}
        concurrency = choose_concurrency(tune, wanted, available, planned - done)
        job = _describe(config, stage, run, sweep, each, device)
        # Of several nodes nobody knows which will train, and a process that has met CUDA before Ray gave it a
        # GPU would not see the right one.
        started: list[Any] = []
        if len(ray.nodes()) == 1 and not can_grow and "GPU" not in each:
            started = start_warm_up(job, concurrency.trials * workers)
        elif stage.preflight:
            stage.preflight(config, run)

        def prepare() -> None:
            finish_warm_up(started)
            begin()

        _fit(config, stage, run, sweep, earlier, job, concurrency, prepare, watch)
    return concurrency


def _describe(
    config: Config, stage: Stage, run: RunPaths, sweep: SweepPaths, each: dict[str, float], device: str
) -> SweepJob:
    """What the trials' processes are told."""
    return SweepJob(
        config=config.model_dump_json(),
        root=str(run.root.absolute()),
        store=str(run.store if not isinstance(run.store, Path) else run.store.absolute()),
        sweep=str(sweep.root.absolute()),
        stage=cast(TrainStageName, stage.name),
        device=device,
        resources=each,
        hands_on=cast(TuneSection, config.tune).scheduler == "pbt",
    )


def _available() -> tuple[dict[str, float], bool]:
    """What the running Ray has, one machine's CPUs counted as its cores; and whether it may grow."""
    capacity = load_capacity()
    total = dict(capacity.total)
    if len(capacity.nodes) == 1 and not capacity.can_grow:
        total["CPU"] = min(total.get("CPU", 0.0), float(os.cpu_count() or 1))
    return total, capacity.can_grow


def _require_growth(stage: StageName, each: dict[str, float], workers: int, labels: dict[str, str]) -> None:
    """Let the autoscaler refuse a trial that no node which it may add could ever hold."""
    keys = "tune.resources, training.num_workers"
    demand = Demand(stage, "training worker", workers, workers, each, keys, labels=labels)
    if find_unmet(demand, load_capacity(labels)) is None:
        return
    problem = ask_autoscaler(demand, _ANSWER_SECONDS)
    if problem is not None:
        raise EnvironmentFault(problem.what, problem.where, problem.fix)


def _fit(  # noqa: PLR0913 - one call, one place
    config: Config,
    stage: Stage,
    run: RunPaths,
    sweep: SweepPaths,
    earlier: list[TrialRecord],
    job: SweepJob,
    concurrency: Concurrency,
    prepare: Callable[[], None],
    watch: Watch | None,
) -> None:
    """Search; `prepare` is called once Ray Tune is imported, before anything is written."""
    from ray import tune as ray_tune

    from raystill.tune.schedule import SLOT, TrialSource, build_scheduler
    from raystill.tune.watching import TrialWatch

    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses logs that nobody asked for
    tune = cast(TuneSection, config.tune)
    finished = [record for record in earlier if record.outcome != "unfinished"]
    source = TrialSource(tune, sweep, earlier)
    prepare()
    watching = TrialWatch(sweep, run, stage.name, tune, source, concurrency, watch)
    space, search = {}, source if tune.scheduler != "pbt" else None
    if search is None:
        space = {SLOT: ray_tune.grid_search(source.population())}
    held = _held(config, stage, job.resources)
    restarts = _RESTARTS_ON_CLUSTER if is_cluster_joined(config) else _RESTARTS
    for record in earlier:
        forget_stop_request(sweep, record.number)
    with _ray_storage(sweep) as storage, _saved_when_interrupted(watching):
        ray_tune.Tuner(
            ray_tune.with_resources(ray_tune.with_parameters(run_trial, job=job), held),
            param_space=space,
            tune_config=ray_tune.TuneConfig(
                search_alg=search,
                scheduler=build_scheduler(tune, finished, source),
                num_samples=source.left if search else 1,
                max_concurrent_trials=concurrency.trials,
                reuse_actors=True,  # a process imports torch once, not for every trial
            ),
            run_config=ray_tune.RunConfig(
                name=tune.name,
                storage_path=str(storage),
                failure_config=ray_tune.FailureConfig(max_failures=restarts),
                callbacks=[watching],
                verbose=0,
            ),
        ).fit()
    watching.close()
    _require_room(watching.fault, sweep)


def _require_room(fault: DiskFault | None, sweep: SweepPaths) -> None:
    if fault is not None:
        raise DiskFault(
            f"the sweep stopped: {fault.what}",
            where=str(sweep.root),
            fix="free some space, or set tune.max_gb, then run again: trials go on from what they saved",
        ) from fault


@contextmanager
def _saved_when_interrupted(watching: TrialWatch) -> Iterator[None]:
    """Ctrl-C and SIGTERM: trials save the step they are at before Ray ends them. A second ends the wait."""
    try:
        yield
    except KeyboardInterrupt:
        watching.stop_trials(_STOP_SECONDS)
        raise


def _held(config: Config, stage: Stage, each: dict[str, float]) -> Any:
    """What Ray Tune reserves for a trial.

    Several workers are actors of the trial, which itself takes nothing then (the empty bundle).
    """
    from ray.tune import PlacementGroupFactory

    workers, labels = worker_range(config.training)[1], node_labels(config, stage.name)
    bundles = [each] if workers == 1 else [{}] + [each] * workers
    if labels:
        return PlacementGroupFactory(bundles, bundle_label_selector=[labels] * len(bundles))
    return dict(each) if workers == 1 else PlacementGroupFactory(bundles)


@contextmanager
def _ray_storage(sweep: SweepPaths) -> Iterator[Path]:
    """Where Ray Tune keeps its own notes while the sweep runs; on the run's disk, which all nodes see."""
    discard_directory(sweep.ray)
    make_directory(sweep.ray)
    try:
        yield sweep.ray.absolute()
    finally:
        discard_directory(sweep.ray)

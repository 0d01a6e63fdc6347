"""One training run on Ray Train: TorchTrainer with gloo on CPU and nccl on GPU.

Checkpoints and retention are ours (`checkpoint`); Ray gets pointers to them (`pointers`). A run that dies is
started again and resumes from the newest verified checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystill.config.device_type import choose_device_type
from raystill.config.node_labels import is_cluster_joined, node_labels
from raystill.config.schema import Config
from raystill.config.signal_source import teacher_resources
from raystill.config.worker_range import worker_range
from raystill.errors import EnvironmentFault, PreemptionFault, RaystillError
from raystill.run.environment import default_environment
from raystill.run.events import EventLog
from raystill.run.paths import RunPaths
from raystill.run.publish import write_json
from raystill.run.remote import open_place
from raystill.train.metrics import iter_metrics
from raystill.train.settings import TrainStageName

if TYPE_CHECKING:
    from ray.train import FailureConfig

Progress = Callable[[dict[str, Any]], None]

# Ray polls its workers every 2 s by default: a long wait for short runs, at both ends and at every report.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}
# One more process, which only a cluster's notices make worth it.
_PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
# How often a group is asked for again that takes the place of a lost one; each time Ray waits for a minute
# (RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S).
_RESTART_TRIES = 9
_POLL_SECONDS = 0.5
# How long an interrupted driver waits for the workers to finish their step and save it.
_STOP_SECONDS = 20.0
_LONGEST_REASON = 200


def run_training(
    config: Config, paths: RunPaths, stage: TrainStageName, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Train `stage` on the Ray that is running, and return the first worker's summary.

    Where `training.num_workers` is a range, Ray takes as many workers as fit and changes their number as
    nodes come and go. There, and on any cluster, a group that lost a worker, or is about to lose a node, is
    started again as long as it gets on, and as machines for it are there within some minutes.

    Raises the RaystillError that a worker raised; EnvironmentFault if Ray can't give what was asked for, or a
    worker or Ray's controller died.
    """
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

    from raystill.checkpoint.store import latest_valid

    least, most = worker_range(config.training)
    lost_at = -1
    lost: RaystillError | None = None
    while True:
        try:
            return _train_once(config, paths, stage, on_progress, is_restart=lost is not None)
        except TrainingFailedError as error:
            if lost is not None and isinstance(error, ControllerError):
                raise lost from error  # nothing has taken the place of what was lost
            fault = translate_failure(error, paths.checkpoints(stage))
            reached = latest_valid(paths.checkpoints(stage)).step or 0
            stays = least == most and not is_cluster_joined(config)
            can_go_on = isinstance(fault, PreemptionFault) or _own_error(error) is None
            if stays or not can_go_on or reached <= lost_at:
                raise fault from error
            lost_at, lost = reached, fault
            with EventLog(paths.run_log, stage) as events:
                events.emit("warning", message=f"{fault.what}; going on from step {reached}")


def _train_once(
    config: Config,
    paths: RunPaths,
    stage: TrainStageName,
    on_progress: Progress | None,
    *,
    is_restart: bool = False,
) -> dict[str, Any]:
    """One worker group's work, and that of those that Ray puts in its place when nodes come and go.

    The first group waits for its machines without an end: a cluster may still grow into it, and what it can
    never have was refused. A restart doesn't.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from raystill.train.meeting import MeetingConfig
    from raystill.train.pointers import fresh_attempt, pointer_config

    resources = ray.cluster_resources()
    joined = is_cluster_joined(config)
    device = choose_device_type(config, resources.get("GPU", 0.0), can_grow=joined)
    scaling = {"CPU": float(config.training.cpus_per_worker or 1)} | (
        {"GPU": 1.0} if device == "cuda" else {}
    )
    beside = teacher_resources(config, on_gpu=device == "cuda") if stage == "distill" else {}
    require_resources(config, scaling, resources, beside)
    attempts = paths.ray_attempts(stage).absolute()
    least, most = worker_range(config.training)
    wanted = _ENVIRONMENT | {_PREEMPTION_WATCHER: str(int(joined))}
    with default_environment(wanted), fresh_attempt(attempts) as name:
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config=_loop_config(config, paths, stage, device),
            scaling_config=ScalingConfig(
                num_workers=most if least == most else (least, most),
                use_gpu=device == "cuda",
                resources_per_worker=scaling,
                label_selector=node_labels(config, stage) or None,
            ),
            torch_config=MeetingConfig(backend="nccl" if device == "cuda" else "gloo"),
            run_config=RunConfig(
                name=name,
                storage_path=str(attempts),
                failure_config=_failure_config(is_restart),
                checkpoint_config=pointer_config(config),
            ),
        )
        try:
            tail = MetricsTail(paths.training_metrics(stage))
            result = _fit(trainer.fit, tail, on_progress, paths.stop_request(stage))
        except ray.exceptions.RayActorError as error:
            raise EnvironmentFault(
                "Ray Train's controller died",
                where=str(paths.checkpoints(stage)),
                fix="run again: it resumes from the newest checkpoint",
            ) from error
    summary: dict[str, Any] = result.return_value
    return summary


def _loop_config(config: Config, paths: RunPaths, stage: TrainStageName, device: str) -> dict[str, Any]:
    """What `_ray_worker` needs to know."""
    return {
        "config": config.model_dump_json(),
        "root": str(paths.root.absolute()),
        "store": str(paths.store.absolute()),
        "stage": stage,
        "device": device,
        "watch_preemption": is_cluster_joined(config),
    }


def _failure_config(is_restart: bool) -> FailureConfig:
    """Groups that are lost are `run_training`'s to start again; those that can't be started, Ray's."""
    from ray.train import FailureConfig

    tries = _RESTART_TRIES if is_restart else -1
    return FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=tries)


def _ray_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    import ray.train
    import ray.train.torch
    import torch

    from raystill.train.assembly import TrainJob
    from raystill.train.device import choose_num_threads
    from raystill.train.group import WorkerGroup
    from raystill.train.pointers import PointerReporter
    from raystill.train.worker import train_worker

    context = ray.train.get_context()
    config = Config.model_validate_json(loop_config["config"])
    job = TrainJob(
        config=config,
        paths=replace(
            RunPaths.from_config(config),
            root=Path(loop_config["root"]),
            store=open_place(loop_config["store"]),
        ),
        stage=loop_config["stage"],
        device=str(ray.train.torch.get_device()) if loop_config["device"] == "cuda" else "cpu",
        num_threads=choose_num_threads(config, context.get_local_world_size()),
    )
    group = WorkerGroup(context.get_world_rank(), context.get_world_size())
    recent = config.training.checkpoint_cleanup.max_checkpoints
    reporter = PointerReporter(job.paths.checkpoints(job.stage), group, torch.device(job.device), recent)
    return train_worker(job, group, reporter, _is_preempted if loop_config["watch_preemption"] else None)


def _is_preempted() -> bool:
    """Whether Ray was told that a machine of this run is going away. Collective."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def require_resources(
    config: Config,
    scaling: dict[str, float],
    resources: dict[str, float],
    beside: Mapping[str, float] | None = None,
) -> None:
    """Refuse what a local Ray can never give to workers and, `beside` each, the teachers' process; a cluster
    may still grow into it."""
    if is_cluster_joined(config):
        return
    workers, _ = worker_range(config.training)
    beside = beside or {}
    taught = ", with a process for their teachers each," if beside else ""
    for name in {**scaling, **beside}:
        amount = (scaling.get(name, 0.0) + beside.get(name, 0.0)) * workers
        if amount > resources.get(name, 0.0):
            raise EnvironmentFault(
                f"{workers} training workers{taught} need {amount:g} {name}, and Ray has "
                f"{resources.get(name, 0.0):g}",
                where="training.num_workers, training.cpus_per_worker"
                + (", train.distillation.teacher.worker" if beside else ""),
                fix="lower them, raise cluster.num_cpus, or use a larger machine",
            )


def translate_failure(error: Exception, checkpoints: Path) -> RaystillError:
    """Our own error if a worker raised one; else what Ray knows about the worker that died."""
    if (own := _own_error(error)) is not None:
        return own
    first = next(iter(_causes(error)), error)
    # A wrapped exception's text is its traceback, which ends with the message; Ray's own explains at length.
    text = next(iter(reversed(str(first).strip().splitlines())), "no message")[:_LONGEST_REASON]
    return EnvironmentFault(
        f"a training worker failed: {type(first).__name__}: {text}",
        where=str(checkpoints),
        fix="run again: it resumes from the newest checkpoint; if memory ran out, lower "
        "per_device_train_batch_size and raise gradient_accumulation_steps",
    )


def _own_error(error: Exception) -> RaystillError | None:
    return next((cause for cause in _causes(error) if isinstance(cause, RaystillError)), None)


def _causes(error: Exception) -> list[Exception]:
    failures = getattr(error, "worker_failures", {})
    return [getattr(failure, "_base_exc", failure) for _, failure in sorted(failures.items())]


class MetricsTail:
    """Reads the lines that are added to metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = sum(1 for _ in iter_metrics(path))

    def new_lines(self) -> list[dict[str, Any]]:
        """Lines since the last call. A resumed run first drops those that it is going to write again."""
        records = list(iter_metrics(self._path))
        added = records[min(self._seen, len(records)) :]
        self._seen = len(records)
        return added


def _fit(fit: Callable[[], Any], tail: MetricsTail, on_progress: Progress | None, stop_request: Path) -> Any:
    """Run `fit` in a thread of its own and show progress in this one.

    In the main thread Ray Train would put its own handler on Ctrl-C, which exits with 0; like this an
    interrupt stays one. The first asks the workers to save the step they are at, and waits for that; the
    second ends them as they are, with this process's Ray. The next run resumes.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(fit())
        except BaseException as error:  # noqa: BLE001 (handed to the caller, whatever it is)
            outcome.set_exception(error)

    stop_request.unlink(missing_ok=True)
    threading.Thread(target=run, name="ray-train-fit", daemon=True).start()
    try:
        while True:
            finished = wait([outcome], timeout=_POLL_SECONDS).done
            for record in tail.new_lines() if on_progress else []:
                on_progress(record)  # type: ignore[misc]
            if finished:
                return outcome.result()
    except KeyboardInterrupt:
        write_json(stop_request, {"reason": "interrupted"})
        wait([outcome], timeout=_STOP_SECONDS)
        raise
    finally:
        stop_request.unlink(missing_ok=True)

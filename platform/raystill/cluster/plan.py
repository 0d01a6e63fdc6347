"""What a run would do, before it does anything: stages, rows, tokens, disk, memory and time.

Reads manifests, source sizes and checkpoint headers only; imports no torch and starts no Ray. Numbers that
are not read from finished stages are estimates, and the plan says which assumption each one rests on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raystill.cluster.demand import Demand, find_unmet, local_capacity, stage_demand
from raystill.cluster.endpoint_cost import estimate_cost_usd
from raystill.cluster.judge_work import JudgeWork, estimate_judge_work
from raystill.cluster.kd_source import PlannedSource, plan_kd_source
from raystill.cluster.model_size import count_local_parameters, load_architecture, student_parameters
from raystill.cluster.plan_warnings import find_budget_warnings, find_disk_warnings, find_size_warnings
from raystill.cluster.rates import answer_key, load_rates, machine_name
from raystill.cluster.sizing import (
    NUM_MILESTONES,
    SIGNAL_BYTES_AT_20,
    TRAINED_BYTES,
    PlannedStage,
    StageSizing,
    configured_training,
)
from raystill.cluster.workload import Workload, estimate_workload
from raystill.config.schema import Config
from raystill.errors import Problem
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage
from raystill.run.state import load_stage_state

RESIDENT_BYTES = 16  # training: float32 weight, two moments and a gradient per parameter
FLOPS = {"cpu": 2e10, "cuda": 1e14}  # useful operations per second: of one core, of one GPU


@dataclass(frozen=True)
class Plan:
    """The whole plan. `blockers` are what would stop the run before it starts.

    `seconds` and `disk_bytes` are sums over the stages that would work; `unknown` names those of them that
    could not be estimated, so that the sums are lower bounds. `cost_usd` is what a closed teacher charges,
    and `judge` what the stage grade will ask; both None where their stage has nothing to do.
    """

    run_dir: str
    store_dir: str
    stages: tuple[PlannedStage, ...]
    workload: Workload
    teacher_parameters: int | None
    student_parameters: int | None
    steps: dict[str, int | None]
    memory_bytes: int | None
    kd_source: PlannedSource | None
    disk_bytes: int
    free_disk_bytes: int
    seconds: float
    cost_usd: float | None
    judge: JudgeWork | None
    unknown: tuple[StageName, ...]
    demands: tuple[Demand, ...]
    blockers: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-able data; the shape that `raystill plan --json` prints."""
        return asdict(self)


def compute_plan(config: Config, stages: Sequence[Stage], blockers: Sequence[Problem] = ()) -> Plan:
    """Plan `stages` (in order) for `config`. Raises DataError for an unreadable manifest."""
    paths = RunPaths.from_config(config)
    states = {stage.name: load_stage_state(stage, config, paths) for stage in stages}
    manifest = {name: state.manifest for name, state in states.items() if state.status == "complete"}
    rates = load_rates(paths)
    workload = estimate_workload(
        config, manifest.get("prepare"), manifest.get("generate"), rates.get(answer_key(config))
    )
    teacher = _teacher_parameters(config)
    vocabulary = _vocabulary(config)
    student = student_parameters(config.student, vocabulary)
    device = _device(config)
    speed = FLOPS[device] * (1 if device == "cuda" else _num_cpus(config))
    judge = estimate_judge_work(config, workload)
    machine = machine_name(device, _num_cpus(config))
    sizing = StageSizing(config, workload, judge, teacher, vocabulary, student, speed, machine, rates)
    planned = tuple(sizing.plan(stage.name, states[stage.name]) for stage in stages)
    working = [stage for stage in planned if stage.action != "reuse"]
    names = {stage.name for stage in working}
    asked = (stage_demand(config, stage.name, device) for stage in working)
    demands = tuple(demand for demand in asked if demand is not None)
    disk = sum(stage.disk_bytes or 0 for stage in working)
    free = _free_disk(paths.root)
    return Plan(
        run_dir=str(paths.root),
        store_dir=str(paths.store),
        stages=planned,
        workload=workload,
        teacher_parameters=teacher,
        student_parameters=student,
        steps={name: sizing.steps(section) for name, section in configured_training(config)},
        memory_bytes=None if student is None else student * RESIDENT_BYTES,
        kd_source=plan_kd_source(config, student),
        disk_bytes=disk,
        free_disk_bytes=free,
        seconds=sum(stage.seconds or 0.0 for stage in working),
        cost_usd=estimate_cost_usd(config, workload) if "generate" in names else None,
        judge=judge if "grade" in names else None,
        unknown=tuple(stage.name for stage in working if None in (stage.seconds, stage.disk_bytes)),
        demands=demands,
        blockers=(*blockers, *_refusals(planned, paths), *_unmet(config, demands)),
        warnings=(
            *find_disk_warnings(config, disk, free),
            *find_budget_warnings(config, names, workload, judge),
            *find_size_warnings(config, teacher, student),
        ),
        assumptions=_assumptions(config, device, workload, sizing.remembered(working)),
    )


def _teacher_directory(config: Config) -> Path | None:
    return None if config.teacher.open is None else Path(config.teacher.open.model.name).expanduser()


def _teacher_parameters(config: Config) -> int | None:
    directory = _teacher_directory(config)
    return None if directory is None else count_local_parameters(directory)


def _vocabulary(config: Config) -> int | None:
    directory = _teacher_directory(config)
    architecture = load_architecture(directory) if directory is not None else None
    size = None if architecture is None else architecture.get("vocab_size")
    return size if isinstance(size, int) else None


def _device(config: Config) -> str:
    if config.device.type != "auto":
        return config.device.type
    return "cuda" if shutil.which("nvidia-smi") else "cpu"


def _num_cpus(config: Config) -> int:
    return config.cluster.num_cpus or os.cpu_count() or 1


def _free_disk(root: Path) -> int:
    place = root.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _refusals(planned: Sequence[PlannedStage], paths: RunPaths) -> list[Problem]:
    return [
        Problem(
            f"{stage.name} was made with other settings: " + "; ".join(stage.differences),
            where=str(paths.stage_dir(stage.name)),
            fix="restore them, choose another run.name, or replace the output with --fresh",
        )
        for stage in planned
        if stage.action == "refuse"
    ]


def _unmet(config: Config, demands: Sequence[Demand]) -> list[Problem]:
    """What this machine can never give; a cluster says so itself once it is joined."""
    capacity = local_capacity(config)
    if capacity is None:
        return []
    return [problem for demand in demands if (problem := find_unmet(demand, capacity)) is not None]


def _assumptions(
    config: Config, device: str, workload: Workload, remembered: Sequence[StageName]
) -> tuple[str, ...]:
    where = f"{_num_cpus(config)} CPU cores" if device == "cpu" else "one GPU"
    recent = config.training.checkpoint_cleanup.max_checkpoints
    measured = [f"time of {', '.join(remembered)}: as fast as in earlier runs here"] if remembered else []
    return (
        *workload.notes,
        *measured,
        f"time: {FLOPS[device] * (_num_cpus(config) if device == 'cpu' else 1):.0e} useful operations/s on "
        f"{where}, plus start-up of each stage; an order of magnitude, not a promise",
        f"signals: {SIGNAL_BYTES_AT_20:.0f} bytes per completion token at 20 logprobs of a large vocabulary",
        f"checkpoints: {NUM_MILESTONES} milestones and {recent} recent ones, {TRAINED_BYTES} bytes/parameter",
    )

"""What a run would do, before it does anything: stages, rows, tokens, disk, memory and time.

Reads manifests, source sizes and checkpoint headers only; imports no torch and starts no Ray. Numbers that
are not read from finished stages are estimates, and the plan says which assumption each one rests on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from raystill.cluster.demand import Demand, find_unmet, local_capacity, stage_demand
from raystill.cluster.endpoint_cost import estimate_cost_usd, estimate_seconds
from raystill.cluster.judge_work import JudgeWork, estimate_judge_work
from raystill.cluster.kd_source import PlannedSource, plan_kd_source
from raystill.cluster.model_size import count_local_parameters, load_architecture, student_parameters
from raystill.cluster.plan_warnings import find_budget_warnings, find_disk_warnings, find_size_warnings
from raystill.cluster.rates import load_rates, machine_name, rate_key
from raystill.cluster.workload import Workload, estimate_workload
from raystill.config.schema import Config
from raystill.config.training import DistillationSection, SftSection
from raystill.config.worker_range import worker_range
from raystill.errors import Problem
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage
from raystill.run.state import StageState, load_stage_state

Action = Literal["reuse", "resume", "run", "refuse"]

SIGNAL_BYTES_AT_20 = 57.0  # measured per completion token at k = 20: float16 logprobs, int32 ids, zstd
TEXT_BYTES = 6.0  # text and token ids per token, compressed
NUM_MILESTONES = 6
TRAINED_BYTES = 12  # checkpoint: float32 weight and two float32 moments per trained parameter
RESIDENT_BYTES = 16  # training: the same and a float32 gradient
STARTUP_SECONDS: dict[StageName, float] = {
    "prepare": 1, "generate": 40, "score": 40, "grade": 40, "curate": 5, "sft": 20, "distill": 20,
    "evaluate": 30, "export": 30,
}  # fmt: skip
FLOPS = {"cpu": 1.5e10, "cuda": 1e14}  # useful operations per second: of one core, of one GPU
_ACTIONS: dict[str, Action] = {"complete": "reuse", "started": "resume", "absent": "run", "changed": "refuse"}


@dataclass(frozen=True)
class PlannedStage:
    """One stage: what will happen to it and what that needs. None: unknown until earlier stages ran."""

    name: StageName
    action: Action
    work: str
    seconds: float | None
    disk_bytes: int | None
    differences: tuple[str, ...] = ()


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
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-able data; the shape that `raystill plan --json` prints."""
        return asdict(self)


def compute_plan(config: Config, stages: Sequence[Stage], blockers: Sequence[Problem] = ()) -> Plan:
    """Plan `stages` (in order) for `config`. Raises DataError for an unreadable manifest."""
    paths = RunPaths.from_config(config)
    states = {stage.name: load_stage_state(stage, config, paths) for stage in stages}
    manifest = {name: state.manifest for name, state in states.items() if state.status == "complete"}
    workload = estimate_workload(config, manifest.get("prepare"), manifest.get("generate"))
    teacher = _teacher_parameters(config)
    student = student_parameters(config.student, _vocabulary(config))
    device = _device(config)
    speed = FLOPS[device] * (1 if device == "cuda" else _num_cpus(config))
    rates = load_rates(paths)
    judge = estimate_judge_work(config, workload)
    sizing = _Sizing(
        config, workload, judge, teacher, student, speed, machine_name(device, _num_cpus(config)), rates
    )
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
        steps={name: sizing.steps(section) for name, section in _training(config)},
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


@dataclass(frozen=True)
class _Sizing:
    """Estimates for single stages. `speed` is in floating-point operations per second."""

    config: Config
    workload: Workload
    judge: JudgeWork | None
    teacher: int | None
    student: int | None
    speed: float
    machine: str
    rates: Mapping[str, float]

    def plan(self, name: StageName, state: StageState) -> PlannedStage:
        action = _ACTIONS[state.status]
        if action == "reuse" and state.manifest is not None:
            return PlannedStage(name, action, self._work(name), 0.0, 0)
        operations, disk = self._needs(name)
        rate = self._rate(name)
        if operations is None:
            seconds = None
        elif rate is not None:  # measured with its start-up
            seconds = operations / rate
        else:
            seconds = STARTUP_SECONDS[name] + operations / self.speed
        if name == "generate" and self.config.teacher.base.from_store is not None:
            seconds, disk = STARTUP_SECONDS["prepare"], 0
        elif name == "generate" and self.config.teacher.closed is not None:
            seconds = estimate_seconds(self.config, self.workload)
        elif name == "grade" and self.config.grade is not None and self.config.grade.closed is not None:
            seconds = None if self.judge is None else self.judge.least_seconds
        return PlannedStage(name, action, self._work(name), seconds, disk, state.differences)

    def remembered(self, stages: Sequence[PlannedStage]) -> list[StageName]:
        """The stages whose time rests on an earlier run's rate."""
        return [stage.name for stage in stages if self._rate(stage.name) is not None]

    def _rate(self, name: StageName) -> float | None:
        """Operations per second of an earlier run with a model of this size on this machine."""
        parameters = self.teacher if name == "generate" else self.student
        if name not in ("generate", "sft", "distill") or parameters is None:
            return None
        return self.rates.get(rate_key(name, self.machine, parameters))

    def steps(self, section: SftSection | DistillationSection | None) -> int | None:
        """Optimizer steps of a training stage."""
        if section is None:
            return None
        given = section.steps or self.config.training.steps
        rows = self.workload.train_rows
        if given is not None or rows is None:
            return given
        test_size = section.dataset.test_size if isinstance(section, SftSection) else section.test_size
        trained = rows - round(rows * test_size)
        per_step = section.per_device_train_batch_size * section.gradient_accumulation_steps
        per_step *= worker_range(self.config.training)[1]
        return section.num_train_epochs * max(1, -(-trained // per_step))

    def _section(self, name: StageName) -> SftSection | DistillationSection | None:
        return dict(_training(self.config)).get(name)

    def _work(self, name: StageName) -> str:
        rows = self.workload.rows
        count = "rows counted after prepare" if rows is None else f"{rows:,} prompts"
        tokens = self.workload.completion_tokens
        stored = self.workload.requests if self.config.teacher.base.from_store is not None else None
        if name == "generate" and stored is not None:
            return f"{stored:,} stored answers, none asked for"
        if name in ("generate", "score") and tokens is not None:
            return f"{count}, {'' if self.workload.is_measured else '~'}{tokens:,} completion tokens"
        if name == "grade" and self.judge is not None:
            return self.judge.describe()
        if name in ("sft", "distill"):
            steps = self.steps(self._section(name))
            return "steps counted after prepare" if steps is None else f"{steps:,} optimizer steps"
        if name == "evaluate":
            held_out = self.workload.eval_rows
            wanted = self.config.evaluation.max_samples
            if held_out is None:
                return "held-out prompts"
            return f"{min(held_out, wanted or held_out):,} held-out prompts"
        if name == "export":
            return f"merged safetensors, {self.config.export.dtype}"
        return count

    def _needs(self, name: StageName) -> tuple[float | None, int | None]:
        """Floating-point operations and bytes on disk of a stage, None where unknown."""
        tokens = self._row_tokens()
        completion = self.workload.completion_tokens
        k = self.config.teacher.signals.num_logprobs
        match name:
            case "prepare":
                prompts = self.workload.prompt_tokens
                return 0.0, None if prompts is None else prompts * 4
            case "generate" | "score":
                if completion is None:
                    return None, None
                disk = int(completion * (TEXT_BYTES + SIGNAL_BYTES_AT_20 * k / 20))
                operations = None if self.teacher is None else 2.0 * self.teacher * completion
                return operations, disk if name == "generate" else int(
                    completion * SIGNAL_BYTES_AT_20 * k / 20
                )
            case "grade":
                if self.judge is None or self.judge.tokens is None:
                    return None, None
                return self.judge.operations, int(self.judge.tokens * TEXT_BYTES)
            case "curate":
                return 0.0, 64 * (self.workload.rows or 0)
            case "sft" | "distill":
                return self._training_needs(name, tokens)
            case "evaluate":
                if self.student is None or self.workload.eval_rows is None or tokens is None:
                    return None, None
                return 8.0 * self.student * self.workload.eval_rows * tokens, 1 << 20
            case "export":
                if self.student is None:
                    return None, None
                return 0.0, self.student * (4 if self.config.export.dtype == "float32" else 2)

    def _training_needs(self, name: StageName, row_tokens: float | None) -> tuple[float | None, int | None]:
        section = self._section(name)
        if section is None or self.student is None:
            return None, None
        cleanup = self.config.training.checkpoint_cleanup
        kept = NUM_MILESTONES + cleanup.max_checkpoints + cleanup.keep_best
        disk = self.student * TRAINED_BYTES * kept
        if section.peft.lora is not None:
            disk //= 20
        steps = self.steps(section)
        if steps is None or row_tokens is None:
            return None, disk
        rows = section.per_device_train_batch_size * section.gradient_accumulation_steps
        rows *= worker_range(self.config.training)[1]
        return 6.0 * self.student * steps * rows * row_tokens, disk

    def _row_tokens(self) -> float | None:
        work = self.workload
        if not work.rows or work.prompt_tokens is None or work.completion_tokens is None:
            return None
        return (work.prompt_tokens + work.completion_tokens) / work.rows


def _training(config: Config) -> list[tuple[StageName, SftSection | DistillationSection]]:
    found: list[tuple[StageName, SftSection | DistillationSection]] = []
    if config.train.sft is not None:
        found.append(("sft", config.train.sft))
    if config.train.distillation is not None:
        found.append(("distill", config.train.distillation))
    return found


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
        f"signals: {SIGNAL_BYTES_AT_20:.0f} bytes per completion token at 20 logprobs",
        f"checkpoints: {NUM_MILESTONES} milestones and {recent} recent ones, {TRAINED_BYTES} bytes/parameter",
    )

"""The stage graph: which stages a configuration has, in which order, and how they run.

    prepare -> generate -> score -> grade -> curate -> sft -> distill -> evaluate -> export -> report

The one file that knows every stage. The command line and the jobs call `run_pipeline` and `run_stage`;
both go through `_run`, so a stage behaves the same however it is started. Stage modules import their heavy
libraries inside functions, so a run whose stages are all complete ends in seconds without torch or Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

from raystill.cluster.forecast import save_forecast
from raystill.cluster.plan import Plan, compute_plan
from raystill.cluster.rates import remember_rate
from raystill.cluster.run_session import RunSession
from raystill.config.loaded import LoadedConfig
from raystill.config.node_labels import is_cluster_joined
from raystill.config.schema import Config
from raystill.config.support import require_supported
from raystill.config.yaml_text import render_config
from raystill.errors import ConfigError, Problem, RaystillError
from raystill.run.events import EventLog
from raystill.run.interrupts import sigterm_interrupts
from raystill.run.lock import hold_lock
from raystill.run.manifest import load_manifest
from raystill.run.paths import MANIFEST_NAME, STAGE_NAMES, RunPaths, StageName
from raystill.run.publish import make_directory, publish_file
from raystill.run.stage import Stage, StageContext, execute, load_inputs
from raystill.run.state import validate_run_root

if TYPE_CHECKING:
    from raystill.teacher.preview import Preview

Step = Literal[
    "prepare", "generate", "score", "grade", "curate", "sft", "distill", "evaluate", "export", "report"
]
STEP_NAMES: tuple[Step, ...] = get_args(Step)

_STAGES: dict[StageName, tuple[str, str]] = {
    "prepare": ("raystill.prompts.stage", "STAGE"),
    "generate": ("raystill.teacher.generate_stage", "GENERATE_STAGE"),
    "score": ("raystill.teacher.score_stage", "SCORE_STAGE"),
    "grade": ("raystill.teacher.grade_stage", "GRADE_STAGE"),
    "curate": ("raystill.curate.stage", "STAGE"),
    "sft": ("raystill.train.stage", "SFT_STAGE"),
    "distill": ("raystill.train.stage", "DISTILL_STAGE"),
    "evaluate": ("raystill.evaluate.stage", "STAGE"),
    "export": ("raystill.export.stage", "STAGE"),
}


@dataclass(frozen=True)
class StepResult:
    """What happened to one step: whether it was complete already, and how long its work took."""

    name: Step
    skipped: bool
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """What a command did, in order."""

    paths: RunPaths
    steps: tuple[StepResult, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data; the shape that --json prints."""
        return {
            "run_dir": str(self.paths.root),
            "seconds": round(self.seconds, 3),
            "steps": [asdict(step) for step in self.steps],
            "report": str(self.paths.report) if self.paths.report.exists() else None,
        }


class Observer(Protocol):
    """Sees a run as it happens; the terminal is one."""

    def step_started(self, name: Step, position: int, total: int) -> None:
        """A step begins; `position` counts from 1."""
        ...

    def event(self, record: dict[str, Any]) -> None:
        """A stage logged an event (see raystill.run.events)."""
        ...

    def step_finished(self, result: StepResult) -> None:
        """A step is complete, now or since an earlier run."""
        ...


class SilentObserver:
    """An observer that looks away."""

    def step_started(self, name: Step, position: int, total: int) -> None:
        """Nothing to show."""

    def event(self, record: dict[str, Any]) -> None:
        """Nothing to show."""

    def step_finished(self, result: StepResult) -> None:
        """Nothing to show."""


def parse_step(name: str) -> Step:
    """`name` as a step. Raises ConfigError if there is none of that name."""
    for step in STEP_NAMES:
        if step == name:
            return step
    raise ConfigError(
        f"there is no step {name}", where="--until", fix=f"choose one of {', '.join(STEP_NAMES)}"
    )


def load_stage(name: StageName) -> Stage:
    """The stage's definition; imports its package, but none of its heavy libraries."""
    module, attribute = _STAGES[name]
    return cast(Stage, getattr(import_module(module), attribute))


def plan_stages(config: Config) -> tuple[Stage, ...]:
    """The stages of a whole run, in order.

    Teacher outputs are always made; training follows `train`; a model is evaluated and exported if one is
    trained; `curate` filters where it is given. Everything else (score) takes part where a stage of the run
    asks for its output.
    """
    wanted: set[StageName] = {"prepare", "generate"}
    if config.grade is not None:
        wanted.add("grade")
    if config.curate is not None:
        wanted.add("curate")
    if config.train.sft is not None:
        wanted.add("sft")
    if config.train.distillation is not None:
        wanted.add("distill")
    if wanted & {"sft", "distill"}:
        wanted |= {"evaluate", "export"}
    elif config.teacher.signals.capture == "score" or config.teacher.signals.kind != "topk":
        wanted.add("score")
    stages: dict[StageName, Stage] = {}
    waiting = sorted(wanted)
    while waiting:
        name = waiting.pop()
        if name not in stages:
            stages[name] = load_stage(name)
            waiting += stages[name].inputs(config)
    return tuple(stages[name] for name in STAGE_NAMES if name in stages)


def run_pipeline(
    loaded: LoadedConfig,
    *,
    fresh: bool = False,
    accept_new_data: bool = False,
    until: Step | None = None,
    observer: Observer | None = None,
) -> RunResult:
    """Run the whole graph (up to `until`, if given) and write the report of what was trained.

    Complete stages are skipped, half-done ones go on, `fresh` replaces them all. With `accept_new_data`
    prompt sources may have changed: stages up to curate do what is new.
    Raises RaystillError as the stages do, ConfigError if `until` is not a step of this run.
    """
    steps, how = _steps_until(loaded.config, until), _How(fresh, accept_new_data)
    return _run(steps, loaded, how, observer or SilentObserver())


def run_stage(
    name: Step,
    loaded: LoadedConfig,
    *,
    fresh: bool = False,
    accept_new_data: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Run one step. Raises DataError where the output of a stage before it is missing."""
    return _run([name], loaded, _How(fresh, accept_new_data), observer or SilentObserver())


def preview_generation(loaded: LoadedConfig, number: int, *, observer: Observer | None = None) -> Preview:
    """Let the teacher complete `number` prompts, store them, and say what the whole would take.

    Prompts are prepared where they aren't yet. The stage generate is neither begun nor finished by it. Raises
    as those stages do; what a whole run would be refused for is a warning, as other machines may do the rest.
    """
    from raystill.teacher.preview import run_preview

    config, stage = loaded.config, load_stage("generate")
    paths = RunPaths.from_config(config)
    needed = stage.inputs(config)
    require_supported(loaded, [*needed, stage.name])
    validate_run_root(config, paths)
    watching = observer or SilentObserver()
    with hold_lock(paths.lock), RunSession(config, paths, watching.event) as ray, sigterm_interrupts():
        own: list[Step] = [*needed, stage.name]
        _foresee(own, config, paths, fresh=False)
        problems = _foresee_rest(own, config, paths)
        for name in needed:
            _run_one(load_stage(name), config, paths, _How(fresh=False, accept_new_data=False), ray, watching)
        inputs = load_inputs(stage, config, paths)
        if stage.preflight:
            stage.preflight(config, paths)
        ray.start()
        output = paths.stage_dir(stage.name)
        make_directory(output)
        with EventLog(paths.run_log, "preview", watching.event) as events:
            for problem in problems:
                why = f"{problem.what} ({problem.where})" if problem.where else problem.what
                events.emit("warning", message=f"raystill run would be refused: {why}")
            return run_preview(StageContext(config, paths, output, inputs, events), number)


def plan_run(loaded: LoadedConfig, *, only: Step | None = None, until: Step | None = None) -> Plan:
    """Plan the whole run, up to `until`, or one step. Touches nothing and starts nothing.

    Raises DataError for an unreadable manifest; what else would stop the run is among the plan's blockers.
    """
    steps = _steps_until(loaded.config, until) if only is None else [only]
    names: list[StageName] = [name for name in steps if name != "report"]
    blockers: list[Problem] = []
    checks: tuple[Callable[[], None], ...] = (
        lambda: require_supported(loaded, names),
        lambda: validate_run_root(loaded.config, RunPaths.from_config(loaded.config)),
    )
    for check in checks:
        try:
            check()
        except RaystillError as error:
            blockers += error.problems
    return compute_plan(loaded.config, [load_stage(name) for name in names], blockers)


def _steps_until(config: Config, until: Step | None) -> list[Step]:
    steps: list[Step] = [stage.name for stage in plan_stages(config)]
    if "evaluate" in steps:
        steps.append("report")
    if until is None:
        return steps
    if until not in steps:
        raise ConfigError(
            f"this run has no step {until}", where="--until", fix=f"choose one of {', '.join(steps)}"
        )
    return steps[: steps.index(until) + 1]


@dataclass(frozen=True)
class _How:
    """What becomes of output that is there already, and was made from something else."""

    fresh: bool
    accept_new_data: bool


def _run(steps: list[Step], loaded: LoadedConfig, how: _How, observer: Observer) -> RunResult:
    config = loaded.config
    paths = RunPaths.from_config(config)
    require_supported(loaded, [name for name in steps if name != "report"])
    validate_run_root(config, paths)
    started = time.monotonic()
    results = []
    with hold_lock(paths.lock), RunSession(config, paths, observer.event) as ray, sigterm_interrupts():
        _foresee(steps, config, paths, fresh=how.fresh)
        _save_resolved(config, paths)
        begun = _save_forecast(steps, config, paths)
        for position, name in enumerate(steps, 1):
            observer.step_started(name, position, len(steps))
            if name == "report":
                result = _run_report(config, paths, must_build=how.fresh or len(steps) == 1)
            else:
                later = _asking_later(steps[position:], paths, how)
                result = _run_one(load_stage(name), config, paths, how, ray, observer, later)
                if not result.skipped and name in begun:
                    _remember_rate(name, config, paths)
            observer.step_finished(result)
            results.append(result)
    return RunResult(paths, tuple(results), time.monotonic() - started)


def _foresee(steps: list[Step], config: Config, paths: RunPaths, *, fresh: bool) -> None:
    """Let stages refuse what they can refuse already, before the first one costs time or money."""
    for stage in [load_stage(name) for name in steps if name != "report"]:
        if stage.foresee is not None and (fresh or load_manifest(paths.stage_dir(stage.name)) is None):
            stage.foresee(config, paths)


def _foresee_rest(steps: list[Step], config: Config, paths: RunPaths) -> tuple[Problem, ...]:
    """Why a whole run would be refused, if not by these steps."""
    later = [name for name in _steps_until(config, None) if name not in steps]
    try:
        _foresee(later, config, paths, fresh=False)
    except RaystillError as error:
        return error.problems
    return ()


def _asking_later(steps: Sequence[Step], paths: RunPaths, how: _How) -> list[StageName]:
    """Those of `steps` that have work to do on Ray."""
    names: list[StageName] = [name for name in steps if name != "report"]
    undone = [name for name in names if how.fresh or load_manifest(paths.stage_dir(name)) is None]
    return [name for name in undone if load_stage(name).needs_ray]


def _run_one(
    stage: Stage,
    config: Config,
    paths: RunPaths,
    how: _How,
    ray: RunSession,
    observer: Observer,
    later: Sequence[StageName] = (),
) -> StepResult:
    prepare: Callable[[], None] | None = partial(ray.start, stage.name, later) if stage.needs_ray else None
    if stage.loads_models and is_cluster_joined(config):
        prepare, stage = ray.start, replace(stage, body=partial(ray.place, stage))
    outcome = execute(
        stage,
        config,
        paths,
        fresh=how.fresh,
        accept_new_data=how.accept_new_data,
        on_event=ray.event,
        before_work=prepare,
    )
    manifest = outcome.manifest
    return StepResult(stage.name, outcome.skipped, manifest.seconds, manifest.counts, manifest.metrics)


def _save_forecast(steps: list[Step], config: Config, paths: RunPaths) -> frozenset[StageName]:
    """Keep what is expected of the stages, for the report; returns those that begin now."""
    stages = [load_stage(name) for name in steps if name != "report"]
    return save_forecast(paths, compute_plan(config, stages))


def _remember_rate(name: StageName, config: Config, paths: RunPaths) -> None:
    """Let later plans rest on how fast a stage was that has done all of its work in one go."""
    manifest = load_manifest(paths.stage_dir(name))
    if manifest is not None:
        device = "cuda" if str(manifest.metrics.get("device", "cpu")).startswith("cuda") else "cpu"
        remember_rate(config, paths, manifest, device)


def _run_report(config: Config, paths: RunPaths, must_build: bool) -> StepResult:
    manifests = [paths.stage_dir(name) / MANIFEST_NAME for name in STAGE_NAMES]
    newest = max((path.stat().st_mtime for path in manifests if path.exists()), default=0.0)
    if not must_build and paths.report.exists() and paths.report.stat().st_mtime >= newest:
        return StepResult("report", True, 0.0)
    from raystill.report.build import build_report

    started = time.monotonic()
    build_report(paths, config)
    return StepResult("report", False, time.monotonic() - started)


def _save_resolved(config: Config, paths: RunPaths) -> None:
    text = "# Every value that this run uses, defaults included.\n"
    text += render_config(config)
    with publish_file(paths.resolved_config) as temporary:
        temporary.write_text(text, encoding="utf-8")

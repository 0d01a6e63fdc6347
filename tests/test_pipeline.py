"""The stage graph on stages that write one small file each: skipping, resuming, refusing, order, locks."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

import raystill.cluster.demand
import raystill.cluster.disk_monitor
import raystill.cluster.ray_session
from raystill import pipeline
from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError, EnvironmentFault, RaystillError
from raystill.pipeline import (
    Step,
    StepResult,
    plan_run,
    plan_stages,
    preview_generation,
    run_pipeline,
    run_stage,
)
from raystill.run.lock import hold_lock
from raystill.run.paths import RunPaths, StageName
from raystill.run.stage import Stage, StageContext, StageResult

CONFIG: dict[str, Any] = {
    "train": {"sft": {}, "distillation": {}},
    "teacher": {"engine": "fake", "open": {"model": {"name": "teacher"}}},
    "student": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
}
GRAPH: dict[StageName, tuple[StageName, ...]] = {
    "prepare": (),
    "generate": ("prepare",),
    "score": ("generate",),
    "curate": ("generate",),
    "sft": ("generate",),
    "distill": ("generate", "sft"),
    "evaluate": ("distill",),
    "export": ("distill",),
}


class Recorder:
    """Counts what ran, and remembers what a terminal would have been told."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self.fail_in: str | None = None
        self.refusing: frozenset[str] = frozenset()
        self.ray_sessions = 0
        self.steps: list[tuple[Step, bool]] = []
        self.events: list[str] = []
        self.warnings: list[str] = []

    def body(self, context: StageContext) -> StageResult:
        name = context.output.name
        self.bodies.append(name)
        if name == self.fail_in:
            raise DataError("a bad row", where="row 3")
        path = context.output / "out.json"
        path.write_text(json.dumps({"seed": context.config.run.seed}), encoding="utf-8")
        return StageResult(counts={"rows": 1}, files=[path])

    def foresee(self, name: str, config: Config, paths: RunPaths) -> None:
        if name in self.refusing:
            raise ConfigError("there is no such student", where="student.base_model_name")

    def step_started(self, name: Step, position: int, total: int) -> None:
        assert 1 <= position <= total

    def event(self, record: dict[str, Any]) -> None:
        self.events.append(f"{record['stage']}:{record['event']}")
        if record["event"] == "warning":
            self.warnings.append(record["message"])

    def step_finished(self, result: StepResult) -> None:
        self.steps.append((result.name, result.skipped))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()

    def make(name: StageName) -> Stage:
        return Stage(
            name,
            config_keys=("run.seed",) if name == "prepare" else (),
            inputs=lambda config, name=name: GRAPH[name],
            body=recorder.body,
            foresee=partial(recorder.foresee, name),
            needs_ray=name == "generate",
        )

    @contextmanager
    def ray_session(config: Config) -> Iterator[None]:
        recorder.ray_sessions += 1
        yield

    def build_report(paths: RunPaths, config: Config) -> Path:
        recorder.bodies.append("report")
        paths.report.write_text("<html></html>", encoding="utf-8")
        return paths.report

    monkeypatch.setattr(pipeline, "load_stage", make)
    monkeypatch.setattr(raystill.cluster.ray_session, "ray_session", ray_session)
    monkeypatch.setattr(raystill.cluster.disk_monitor, "watch_disks", lambda *watched: nullcontext())
    monkeypatch.setattr(raystill.cluster.demand, "require_capacity", lambda *asked: None)
    monkeypatch.setattr("raystill.report.build.build_report", build_report)
    return recorder


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., LoadedConfig]:
    def load(**run: Any) -> LoadedConfig:
        values = CONFIG | {"run": {"name": "r", "dir": str(tmp_path)} | run}
        return LoadedConfig(Config.model_validate(values))

    return load


def test_the_graph_has_what_the_configuration_trains() -> None:
    def names(**changes: Any) -> list[str]:
        return [stage.name for stage in plan_stages(Config.model_validate(CONFIG | changes))]

    trained = ["prepare", "generate", "sft", "distill", "evaluate", "export"]
    assert [name for name in names() if name != "score"] == trained
    assert "distill" not in names(train={"sft": {}})
    assert names(train={})[:2] == ["prepare", "generate"]
    assert not {"evaluate", "export"} & set(names(train={}))
    assert "curate" not in names() and names(curate={}).index("curate") == names(curate={}).index("sft") - 1
    teacher_forcing = CONFIG["teacher"] | {"signals": {"capture": "score"}}
    assert "score" in names(teacher=teacher_forcing)


def test_a_run_goes_through_every_step_once_and_a_second_skips_them(
    recorder: Recorder, load: Callable[..., LoadedConfig]
) -> None:
    result = run_pipeline(load(), observer=recorder)
    assert [step.name for step in result.steps] == [
        "prepare", "generate", "sft", "distill", "evaluate", "export", "report"
    ]  # fmt: skip
    assert recorder.bodies[0] == "prompts" and recorder.bodies[-1] == "report"
    assert recorder.ray_sessions == 1
    assert "generate:stage_started" in recorder.events
    resolved = yaml.safe_load((result.paths.root / "resolved.yaml").read_text(encoding="utf-8"))
    assert Config.model_validate(resolved) == load().config

    recorder.bodies.clear()
    recorder.steps.clear()
    run_pipeline(load(), observer=recorder)
    assert recorder.bodies == []
    assert recorder.ray_sessions == 1
    assert all(skipped for _, skipped in recorder.steps)


def test_until_stops_and_must_be_a_step_of_this_run(
    recorder: Recorder, load: Callable[..., LoadedConfig]
) -> None:
    run_pipeline(load(), until="generate", observer=recorder)
    assert recorder.bodies == ["prompts", "generate"]
    with pytest.raises(ConfigError, match="no step score"):
        run_pipeline(load(), until="score")


def test_fresh_runs_everything_again(recorder: Recorder, load: Callable[..., LoadedConfig]) -> None:
    run_pipeline(load(), observer=recorder)
    recorder.bodies.clear()
    run_pipeline(load(seed=5), fresh=True, observer=recorder)
    assert len(recorder.bodies) == 7


def test_a_changed_setting_is_refused_by_name_before_ray_starts(
    recorder: Recorder, load: Callable[..., LoadedConfig]
) -> None:
    """F32."""
    run_pipeline(load(), until="prepare")
    with pytest.raises(ConfigError, match=r"run\.seed: 0 -> 5"):
        run_pipeline(load(seed=5))
    assert recorder.ray_sessions == 0


def test_a_stage_without_its_input_is_refused_before_ray_starts(
    recorder: Recorder, load: Callable[..., LoadedConfig]
) -> None:
    with pytest.raises(DataError, match="needs the output of prepare"):
        run_stage("generate", load())
    assert recorder.ray_sessions == 0 and recorder.bodies == []


def test_a_failed_stage_is_done_again_and_what_was_before_it_is_kept(
    recorder: Recorder, load: Callable[..., LoadedConfig]
) -> None:
    recorder.fail_in = "sft"
    with pytest.raises(DataError, match="a bad row"):
        run_pipeline(load())
    recorder.fail_in = None
    recorder.bodies.clear()
    run_pipeline(load())
    assert recorder.bodies == ["sft", "distill", "evaluate", "export", "report"]


def test_what_later_stages_refuse_stops_a_run_before_its_first_one(
    recorder: Recorder, load: Callable[..., LoadedConfig]
) -> None:
    recorder.refusing = frozenset({"export"})
    with pytest.raises(ConfigError, match="no such student"):
        run_pipeline(load())
    assert recorder.bodies == [] and recorder.ray_sessions == 0
    recorder.refusing = frozenset()
    run_pipeline(load())
    recorder.refusing = frozenset(GRAPH)
    assert all(step.skipped for step in run_pipeline(load()).steps)  # nothing is left to refuse


def test_a_single_step_refuses_what_it_can_foresee_and_nothing_else(
    recorder: Recorder, load: Callable[..., LoadedConfig]
) -> None:
    run_pipeline(load(), until="prepare")
    recorder.refusing = frozenset({"generate"})
    with pytest.raises(ConfigError, match="no such student"):
        run_stage("generate", load())
    assert recorder.bodies == ["prompts"] and recorder.ray_sessions == 0
    recorder.refusing = frozenset({"sft", "distill"})
    run_stage("generate", load())
    assert recorder.bodies == ["prompts", "generate"]


def test_a_preview_refuses_what_generate_would_and_warns_of_what_a_run_would(
    recorder: Recorder, load: Callable[..., LoadedConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    monkeypatch.setattr("raystill.teacher.preview.run_preview", lambda context, number: shown.append(number))
    recorder.refusing = frozenset({"generate"})
    with pytest.raises(ConfigError, match="no such student"):
        preview_generation(load(), 3, observer=recorder)
    assert recorder.bodies == shown == [] and recorder.ray_sessions == 0
    recorder.refusing = frozenset({"distill"})
    preview_generation(load(), 3, observer=recorder)
    assert recorder.bodies == ["prompts"] and shown == [3]
    assert recorder.warnings == [
        "raystill run would be refused: there is no such student (student.base_model_name)"
    ]


def test_two_runs_of_one_directory_never_work_at_once(
    recorder: Recorder, load: Callable[..., LoadedConfig]
) -> None:
    """F30."""
    paths = RunPaths.from_config(load().config)
    refused: list[str] = []

    def second() -> None:
        try:
            run_stage("prepare", load())
        except EnvironmentFault as error:
            refused.append(error.what)

    with hold_lock(paths.lock):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert refused and str(os.getpid()) in refused[0]
    assert recorder.bodies == []


def test_sigterm_ends_a_run_like_ctrl_c(
    recorder: Recorder, load: Callable[..., LoadedConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F4."""

    def killed(paths: RunPaths, config: Config) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("raystill.report.build.build_report", killed)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(load())
    assert signal.getsignal(signal.SIGTERM) is before


def test_foreign_files_are_never_touched(recorder: Recorder, load: Callable[..., LoadedConfig]) -> None:
    root = RunPaths.from_config(load().config).root
    root.mkdir()
    (root / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(EnvironmentFault, match="not a run"):
        run_pipeline(load(), fresh=True)
    assert [item.name for item in root.iterdir()] == ["thesis.txt"]


def test_a_plan_touches_nothing(recorder: Recorder, load: Callable[..., LoadedConfig]) -> None:
    loaded = load()
    planned = plan_run(loaded)
    assert [stage.action for stage in planned.stages] == ["run"] * 6
    assert not RunPaths.from_config(loaded.config).root.exists()
    assert recorder.bodies == []
    run_pipeline(loaded, until="generate")
    assert [stage.action for stage in plan_run(loaded).stages][:3] == ["reuse", "reuse", "run"]
    changed = plan_run(load(seed=7))
    assert changed.stages[0].action == "refuse"
    assert any("run.seed" in problem.what for problem in changed.blockers)


def test_unsupported_keys_stop_a_run_before_it_writes(
    recorder: Recorder, load: Callable[..., LoadedConfig], tmp_path: Path
) -> None:
    values = CONFIG | {"run": {"name": "r", "dir": str(tmp_path)}, "judge": {"lengths": [1]}}
    loaded = LoadedConfig(Config.model_validate(values))
    with pytest.raises(RaystillError, match="not supported yet"):
        run_pipeline(loaded)
    assert not (tmp_path / "r").exists()
    assert any("judge" in str(problem) for problem in plan_run(loaded).blockers)

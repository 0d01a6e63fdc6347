"""Stages that load models on a cluster whose head has no CPU: a worker node does them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raystill.cluster import stage_task
from raystill.cluster.demand import Demand, stage_demand
from raystill.cluster.stage_task import fits_here, run_as_task
from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config
from raystill.errors import DataError, EnvironmentFault
from raystill.evaluate.stage import STAGE
from raystill.pipeline import run_stage
from raystill.run.events import EventLog
from raystill.run.paths import RunPaths
from raystill.run.stage import StageContext, StageResult, execute

pytestmark = pytest.mark.ray
ONE_CPU = Demand("evaluate", "process", 1, 1, {"CPU": 1.0}, "training.cpus_per_worker")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head without CPUs, which this process is a driver on, and a node with one."""
    import ray
    from ray.cluster_utils import Cluster

    place = tempfile.mkdtemp(prefix="rst", dir="/tmp")
    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": place, **small})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def context(address: str, tmp_path: Path) -> Iterator[StageContext]:
    config = Config.model_validate({"run": {"name": "r", "dir": str(tmp_path)}})
    paths = RunPaths.from_config(config)
    output = paths.stage_dir("evaluate")
    output.mkdir(parents=True)
    with EventLog(paths.run_log, "evaluate") as events:
        yield StageContext(config, paths, output, {}, events)


def logged(paths: RunPaths) -> list[dict[str, Any]]:
    return [json.loads(line) for line in paths.run_log.read_text(encoding="utf-8").splitlines()]


def test_a_head_without_cpus_lets_a_node_evaluate(
    address: str, tmp_path: Path, small_run_module: ModuleType
) -> None:
    run = small_run_module.build_small_run(tmp_path)
    run.paths.run_log.parent.mkdir()
    run.paths.run_log.touch()  # a run began here
    elsewhere = run.config.model_copy(
        update={"cluster": run.config.cluster.model_copy(update={"address": address})}
    )
    found = run_stage("evaluate", LoadedConfig(elsewhere)).steps[0].metrics
    events = [event["event"] for event in logged(run.paths) if event["stage"] == "evaluate"]
    assert events.count("stage_started") == events.count("stage_finished") == 1
    assert events.count("model_measured") == 3 and "note" in events
    here = execute(STAGE, run.config, run.paths, fresh=True).manifest.metrics
    assert found == pytest.approx(here, abs=1e-4) and "eval/distill/exact_match" in found


def test_a_body_says_where_it_runs_what_happens_and_what_was_wrong(context: StageContext) -> None:
    def body(there: StageContext) -> StageResult:
        file = there.output / "found"
        file.write_text(str(os.getpid()), encoding="utf-8")
        there.events.emit("model_started", model="student")
        return StageResult(counts={"models": 1}, files=[file])

    result = run_as_task(body, context, ONE_CPU)
    assert result.counts == {"models": 1} and result.files == [context.output / "found"]
    assert result.files[0].read_text(encoding="utf-8") != str(os.getpid())
    assert [event["model"] for event in logged(context.paths)] == ["student"]

    def failing(there: StageContext) -> StageResult:
        raise DataError("no prompts are held out", where="prompts")

    with pytest.raises(DataError, match="no prompts are held out") as caught:
        run_as_task(failing, context, ONE_CPU)
    assert caught.value.problems[0].where == "prompts"


@pytest.mark.soak
def test_a_lost_worker_is_begun_again_but_not_for_ever(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_task, "_MAX_STARTS", 2)

    def lost_once(there: StageContext) -> StageResult:
        mark = there.output / "mark"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return StageResult()

    run_as_task(lost_once, context, ONE_CPU)
    (warning,) = [event["message"] for event in logged(context.paths) if event["event"] == "warning"]
    assert "beginning it again" in warning

    def lost(there: StageContext) -> StageResult:
        os.kill(os.getpid(), signal.SIGKILL)
        return StageResult()

    with pytest.raises(EnvironmentFault, match="the worker of evaluate died"):
        run_as_task(lost, context, ONE_CPU)


def test_only_a_node_with_what_is_asked_for_fits(address: str) -> None:
    assert not fits_here(ONE_CPU)
    assert fits_here(Demand("evaluate", "process", 1, 1, {"CPU": 0.0}, "training.cpus_per_worker"))


def test_models_are_loaded_where_training_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = {"address": "head:6379", "training_labels": {"market-type": "on-demand"}}
    config = Config.model_validate({"cluster": cluster, "training": {"cpus_per_worker": 3}})
    demand = stage_demand(config, "export", "cuda")
    assert demand is not None
    assert demand.describe() == "1 process, each 3 CPU, 1 GPU, on nodes with market-type: on-demand"
    assert stage_demand(Config(), "evaluate", "cpu") is None

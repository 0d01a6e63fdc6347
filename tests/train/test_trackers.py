"""Trackers record what they are told to, and never stop or change training."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from raystill.config.training import Experiment
from raystill.errors import ConfigError, EnvironmentFault
from raystill.train import trackers
from raystill.train.group import WorkerGroup
from raystill.train.trackers import BackgroundTracker, TrackedRun, require_tracker
from raystill.train.worker import train_worker


class StopError(Exception):
    """Ends a run from within."""


class StopAtSave:
    def report(self, step: int, metrics: dict[str, Any]) -> None:
        raise StopError


class Failing:
    """A tracker whose server is gone."""

    def start(self, run: TrackedRun) -> None:
        raise ConnectionError("nobody listens")

    def log(self, step: int, values: Any) -> None:
        raise ConnectionError("nobody listens")

    def finish(self, model: Path | None) -> None:
        raise ConnectionError("nobody listens")


def experiment(root: Path, **more: Any) -> dict[str, Any]:
    names = {"name": "Distil", "run_name": "first", "registered_model_name": "tiny"}
    where = {"path": str(root / "runs"), "set_tracking_uri": f"file:{root / 'runs'}"}
    return {**names, **where, "dataset_tags": {"version": "v1"}, **more}


def tracked(tmp_path: Path) -> TrackedRun:
    return TrackedRun(Experiment(name="a", run_name="b"), tmp_path / "record.json", {}, {}, 0)


def test_mlflow_holds_metrics_parameters_data_and_the_model(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(world.root)
    from mlflow import MlflowClient

    section = {"report_to": "mlflow", "experiment": experiment(world.root)}
    config = world.config(train={"distillation": section})
    with pytest.raises(StopError):
        train_worker(world.job(config), WorkerGroup(), StopAtSave())
    summary = world.train(config)  # resumes, in the same run of the tracker
    assert summary["counts"]["tracker_failures"] == 0, summary["notes"]
    uri = (world.root / "runs").as_uri()
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.get_experiment_by_name("Distil")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    losses = {
        metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")
    }
    assert losses == {
        line["step"]: line["train/loss"] for line in world.metrics(config) if "train/loss" in line
    }
    assert run.data.params["stage"] == "distill"
    (data,) = run.inputs.dataset_inputs
    assert {tag.key: tag.value for tag in data.tags} == {"version": "v1"}
    files = {item.path for item in client.list_artifacts(run.info.run_id, "huggingface_model")}
    assert "huggingface_model/model.safetensors" in files
    assert [item.path for item in client.list_artifacts(run.info.run_id, "dataset")] == [
        "dataset/dataset.json"
    ]
    (version,) = client.search_model_versions("name = 'tiny'")
    assert version.run_id == run.info.run_id
    assert not list(world.root.glob("*.db"))  # nothing but the store that was named


def test_tensorboard_events_hold_every_line(world: Any) -> None:
    section = {"report_to": "tensorboard", "experiment": experiment(world.root)}
    config = world.config(train={"distillation": section})
    assert world.train(config)["counts"]["tracker_failures"] == 0
    (events,) = (world.root / "runs" / "Distil" / "first").glob("events*")
    content = events.read_bytes()
    names = {name for line in world.metrics(config) for name in line if name.startswith(("train/", "eval/"))}
    assert "train/loss" in names
    assert all(name.encode() in content for name in names)


def test_a_failing_tracker_changes_nothing_and_is_told_once(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = world.config("plain")
    world.train(plain)
    monkeypatch.setattr(trackers, "_make", lambda report_to: Failing())
    config = world.config(train={"distillation": {"report_to": "mlflow"}})
    summary = world.train(config)
    assert world.weights(config) == world.weights(plain)
    assert summary["counts"]["tracker_failures"] >= 3
    (note,) = [note for note in summary["notes"] if "missed" in note]
    assert "ConnectionError: nobody listens" in note


def test_a_slow_tracker_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Slow(Failing):
        def start(self, run: TrackedRun) -> None:
            released.wait()

        def log(self, step: int, values: Any) -> None:
            pass

        def finish(self, model: Path | None) -> None:
            pass

    monkeypatch.setattr(trackers, "_QUEUE_LENGTH", 10)
    tracker = BackgroundTracker(Slow(), tracked(tmp_path))
    for step in range(30):
        tracker.log(step, {"train/loss": 1.0})
    assert tracker.failures >= 19 and "10 calls behind" in tracker.reason
    released.set()
    tracker.close()


def test_what_cannot_be_had_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="own servers"):
        require_tracker("wandb", "train.sft.report_to")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="mlflow is not installed"):
        require_tracker("mlflow", "train.sft.report_to")
    require_tracker("none", "train.sft.report_to")

"""A run's checkpoints: the best by a measurement stay, and the log says what each save did."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from raystill.checkpoint.pins import pin
from raystill.checkpoint.store import (
    latest_valid,
    list_checkpoints,
    load_checkpoint_manifest,
    step_of,
    verify_checkpoint,
)
from raystill.config.load import load_config
from raystill.errors import EnvironmentFault
from raystill.train import saving
from raystill.train.group import WorkerGroup
from raystill.train.worker import train_worker

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


class PinOne:
    """A reporter that pins a step as soon as a later one is being saved."""

    def __init__(self, world: Any, config: Any, step: int) -> None:
        self.directory, self.step = world.paths(config).checkpoints("distill"), step

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        if step == self.step + 1:
            pin(self.directory, self.step)


def test_best_pinned_milestones_and_recent_ones_stay(world: Any) -> None:
    cleanup = {"max_checkpoints": 2, "keep_best": 1, "mode": "max"}
    config = world.config(
        training={"steps": 20, "save_every": 1, "checkpoint_cleanup": cleanup},
        train={"distillation": {"evaluation_strategy": "steps"}},
    )
    train_worker(world.job(config), WorkerGroup(), PinOne(world, config, 7))
    losses = {line["step"]: line["eval/loss"] for line in world.metrics(config) if "eval/loss" in line}
    assert len(losses) == 20
    best = max(losses, key=lambda step: losses[step])
    kept = {step_of(path): path for path in list_checkpoints(world.paths(config).checkpoints("distill"))}
    assert set(kept) == {2, 5, 7, 10, 15, 17, 18, 19, 20, best}
    for step, path in kept.items():
        assert load_checkpoint_manifest(path).metrics["eval/loss"] == losses[step or 0]
    log = [json.loads(line) for line in world.paths(config).run_log.read_text().splitlines()]
    saves = [line for line in log if line["event"] == "checkpoint_saved"]
    assert [line["step"] for line in saves] == list(range(1, 21))
    assert sorted(step for line in saves for step in line["deleted"]) == sorted(set(range(1, 21)) - set(kept))
    assert all(line["num_bytes"] > 0 and line["seconds"] >= 0 and not line["failed"] for line in saves)


class FindsSaved:
    """A reporter that looks for the checkpoint of the step that it hears of."""

    def __init__(self, world: Any, config: Any) -> None:
        self.directory = world.paths(config).checkpoints("distill")
        self.found: list[tuple[int, int | None]] = []

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        self.found.append((step, latest_valid(self.directory).step))


def test_who_asks_for_it_hears_of_a_step_once_its_checkpoint_is_there(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = saving.save_checkpoint

    def save_slowly(*arguments: Any, **content: Any) -> Path:
        time.sleep(0.05)
        return save(*arguments, **content)

    monkeypatch.setattr(saving, "save_checkpoint", save_slowly)
    config = world.config()
    reporter = FindsSaved(world, config)
    train_worker(world.job(config), WorkerGroup(), reporter, reports_saved=True)
    assert len(reporter.found) > 3
    assert all(step == found for step, found in reporter.found)


class StopAt:
    """A reporter that asks the run to stop once a step is reached."""

    def __init__(self, world: Any, config: Any, step: int) -> None:
        self.request, self.step = world.paths(config).stop_request("distill"), step

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        if step == self.step:
            self.request.touch()


def test_thirty_saves_leave_exactly_what_the_demo_promises(world: Any) -> None:
    """With the demo's rules, stopped and resumed: the directory holds the promise and nothing else."""
    cleanup = load_config([DEMO]).config.training.checkpoint_cleanup
    assert (cleanup.max_checkpoints, cleanup.keep_best) == (2, 0)
    rules = cleanup.model_dump(exclude_unset=True) | {"min_free_space_gb": 0.0}
    config = world.config(training={"steps": 120, "save_every": 4, "checkpoint_cleanup": rules})
    directory = world.paths(config).checkpoints("distill")
    with pytest.raises(EnvironmentFault, match="it was asked to"):
        train_worker(world.job(config), WorkerGroup(), StopAt(world, config, 72))
    assert {step_of(path) for path in directory.iterdir()} == {12, 30, 60, 68, 72}
    assert latest_valid(directory).step == 72
    world.paths(config).stop_request("distill").unlink()
    world.train(config)
    milestones, recent = [12, 30, 60, 90, 108, 120], [112, 116]  # 10, 25, 50, 75, 90 and 100 %; the last two
    assert sorted(path.name for path in directory.iterdir()) == [
        f"step-{step:08d}" for step in sorted(milestones + recent)
    ]
    for path in directory.iterdir():
        verify_checkpoint(path)
    log = [json.loads(line) for line in world.paths(config).run_log.read_text().splitlines()]
    saved = {line["step"] for line in log if line["event"] == "checkpoint_saved"}
    assert saved == {*range(4, 121, 4), 30, 90}  # thirty, and the milestones that lie between them

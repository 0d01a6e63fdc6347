"""Ray's list of checkpoints is what is on disk, and nothing that happens to Ray's files stops a run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raystill.checkpoint.store import (
    latest_valid,
    list_checkpoints,
    save_checkpoint,
    step_directory,
    step_of,
)
from raystill.train import launch
from raystill.train.group import WorkerGroup
from raystill.train.launch import run_training
from raystill.train.pointers import PointerReporter, fresh_attempt, listed_checkpoints, pointer_config


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    import ray

    temp_dir = tempfile.mkdtemp(prefix="rp", dir="/tmp")
    ray.init(
        address="local", num_cpus=2, object_store_memory=80_000_000, include_dashboard=False,
        log_to_driver=False, _temp_dir=temp_dir,
    )  # fmt: skip
    yield
    ray.shutdown()
    shutil.rmtree(temp_dir, ignore_errors=True)


def attempt(world: Any, config: Any) -> Path:
    (found,) = [p for p in world.paths(config).ray_attempts("distill").iterdir() if p.is_dir()]
    return Path(found)


@pytest.mark.ray
def test_rays_result_lists_what_exists_whatever_happened_before(world: Any, ray_here: None) -> None:
    """F31: Ray's own snapshot is torn."""
    from ray.train import Result

    steps = {"steps": 12, "save_every": 4, "checkpoint_cleanup": {"max_checkpoints": 1}}
    whole, config = world.config("whole", training=steps), world.config("run", training=steps)
    world.train(whole)
    world.list_requests(world.paths(config))
    checkpoints = world.paths(config).checkpoints("distill")
    deleted: set[int | None] = set()

    def meddle(record: dict[str, Any]) -> None:
        """Delete checkpoints that Ray knows of, while it runs."""
        for path in list_checkpoints(checkpoints)[:-1]:
            if step_of(path) in (2, 4):
                shutil.rmtree(path, ignore_errors=True)
                deleted.add(step_of(path))

    run_training(config, world.paths(config), "distill", meddle)
    snapshot = attempt(world, config) / "checkpoint_manager_snapshot.json"
    assert snapshot.is_file()
    on_disk = list_checkpoints(checkpoints)
    assert {step_of(path) for path in on_disk} == {2, 3, 6, 8, 9, 11, 12} - deleted
    listed = listed_checkpoints(Result.from_path(str(attempt(world, config))))
    assert [path.name for path in listed] == [path.name for path in on_disk]
    assert world.weights(config) == world.weights(whole)
    # A run that goes on: Ray's snapshot is torn, the model is gone, the newest checkpoints are there.
    snapshot.write_text(snapshot.read_text()[:40])
    shutil.rmtree(world.paths(config).model("distill"))
    for path in on_disk[-2:]:
        shutil.rmtree(path)
    run_training(config, world.paths(config), "distill")
    again = listed_checkpoints(Result.from_path(str(attempt(world, config))))
    assert [path.name for path in again] == [path.name for path in list_checkpoints(checkpoints)]
    assert world.weights(config) == world.weights(whole)


@pytest.mark.ray
def test_an_interrupt_saves_the_step_that_training_is_at(
    world: Any, ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F28: what SIGTERM becomes in a driver. The first step that is due to be saved is hours away."""
    monkeypatch.setattr(launch, "_STOP_SECONDS", 300.0)
    config = world.config(training={"steps": 1_000_000, "save_every": 1_000_000, "log_every": 1})
    world.list_requests(world.paths(config))

    def interrupt(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(config, world.paths(config), "distill", interrupt)
    found = latest_valid(world.paths(config).checkpoints("distill"))
    assert found.step is not None and 0 < found.step < 100_000
    assert not world.paths(config).stop_request("distill").exists()
    assert not world.paths(config).ray_attempts("distill").exists()


def test_an_attempt_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with fresh_attempt(tmp_path / "ray") as first:
        (tmp_path / "ray" / first).mkdir()
    assert (tmp_path / "ray" / first).is_dir()
    with pytest.raises(ValueError, match="boom"), fresh_attempt(tmp_path / "ray") as second:
        assert first != second and not (tmp_path / "ray" / first).exists()
        raise ValueError("boom")
    assert not (tmp_path / "ray").exists()


def test_ray_keeps_milestones_and_recent_ones(empty_world: Any) -> None:
    config = empty_world.config(training={"checkpoint_cleanup": {"max_checkpoints": 3}})
    assert pointer_config(config).num_to_keep == 9 + 16  # room for pins
    best = empty_world.config(training={"checkpoint_cleanup": {"max_checkpoints": 3, "keep_best": 2}})
    assert pointer_config(best).num_to_keep == 27


def test_at_the_end_the_best_and_the_pinned_are_told_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray lets pointers go by their step; what stays for another reason must be among those of the end."""
    told: list[tuple[int, bool]] = []

    def note(self: PointerReporter, step: int, *rest: Any, stays: bool = False) -> None:
        self._told.add(step)
        told.append((step, stays))

    monkeypatch.setattr(PointerReporter, "_tell", note)
    reporter = PointerReporter(tmp_path, WorkerGroup(), torch.device("cpu"), num_recent=2)
    for step in (3, 15, 50, 100):  # of an attempt before: pinned, best, milestones
        save_checkpoint(tmp_path, step, tensors={"model": {"w": torch.ones(1)}}, state={})
    for step in (120, 130, 140, 160, 180, 190, 200):
        save_checkpoint(tmp_path, step, tensors={"model": {"w": torch.ones(1)}}, state={})
        if step in (140, 160):
            shutil.rmtree(step_directory(tmp_path, step))
        reporter.report(step, {"total_steps": 200})
    assert told[:6] == [(step, False) for step in (120, 130, 140, 160, 180, 190)]
    assert told[6:] == [(step, True) for step in (3, 15, 50, 100, 120, 130)] + [(200, False)]

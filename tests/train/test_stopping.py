"""A run that has to stop saves the step it is at, says why, and goes on from there byte for byte."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raystill.checkpoint.store import latest_valid, list_checkpoints, step_of, verify_checkpoint
from raystill.errors import EnvironmentFault
from raystill.train import launch, saving, stopping
from raystill.train.group import WorkerGroup
from raystill.train.worker import train_worker

STEPS = {"steps": 20, "save_every": 10}  # milestones at 2, 5, 10, ...


class Quiet:
    """A reporter that does nothing, or one thing at one step."""

    def __init__(self, at: int = -1, act: Any = None) -> None:
        self.at, self.act = at, act

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        assert metrics["total_steps"] == 20
        if step == self.at:
            self.act()


def test_a_notice_saves_a_step_that_was_not_due_and_the_end_is_byte_equal(world: Any) -> None:
    """F28."""
    whole, broken = world.config("whole", training=STEPS), world.config("broken", training=STEPS)
    world.train(whole)
    with pytest.raises(EnvironmentFault, match="after step 1, which is saved: a machine is about") as caught:
        train_worker(world.job(broken), WorkerGroup(), Quiet(), is_preempted=lambda: True)
    assert caught.value.exit_code == 4
    assert latest_valid(world.paths(broken).checkpoints("distill")).step == 1
    world.train(broken)
    assert world.weights(broken) == world.weights(whole)


def test_a_request_stops_after_the_step(world: Any) -> None:
    config = world.config(training=STEPS)
    request = world.paths(config).stop_request("distill")
    with pytest.raises(EnvironmentFault, match="after step 5, which is saved: it was asked to"):
        train_worker(world.job(config), WorkerGroup(), Quiet(5, lambda: request.write_text("{}")))
    found = [step_of(path) for path in list_checkpoints(world.paths(config).checkpoints("distill"))]
    assert found == [2, 5]


def test_little_disk_lets_recent_ones_go_then_ends_the_run(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F15: a neighbour takes the disk at step 10: at once what may go goes, then the run saves and stops."""
    training = {**STEPS, "save_every": 1, "checkpoint_cleanup": {"min_free_space_gb": 2.0}}
    config = world.config(training=training, disk={"interval_s": 1e-6, "hard_free_gb": 1.0})
    directory = world.paths(config).checkpoints("distill")
    free = {"gb": 100.0}

    def read(path: Path) -> int:
        return int(free["gb"] * 2**30)

    monkeypatch.setattr(stopping, "free_bytes", read)
    monkeypatch.setattr("raystill.checkpoint.retention.free_bytes", read)
    with pytest.raises(EnvironmentFault, match=r"0\.50 GiB of disk are free, less than disk\.hard_free_gb"):
        train_worker(world.job(config), WorkerGroup(), Quiet(13, lambda: free.update(gb=0.5)))
    assert [step_of(path) for path in list_checkpoints(directory)] == [2, 5, 10, 13]
    assert all(verify_checkpoint(path) for path in list_checkpoints(directory))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A real filesystem of 1 MiB; skipped where none may be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a filesystem")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_run_with_what_it_kept_sound(world: Any, small_disk: Path) -> None:
    """F14."""
    config = world.config(training={**STEPS, "save_every": 1}, disk={"hard_free_gb": 0.0})
    directory = world.paths(config).checkpoints("distill")
    directory.parent.mkdir(parents=True)
    directory.symlink_to(small_disk)
    with pytest.raises(EnvironmentFault, match=r"not enough disk|disk is full") as caught:
        world.train(config)
    assert caught.value.exit_code == 4
    kept = list_checkpoints(directory)
    assert kept and all(verify_checkpoint(path) for path in kept)
    assert not [path for path in directory.iterdir() if path.name.startswith(".tmp-")]


def test_a_neighbour_that_takes_the_whole_disk_harms_nothing(world: Any, small_disk: Path) -> None:
    """F14, F15: a process that writes until nothing is free; the run stops or makes do, and then goes on."""
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    whole = world.config("whole", training=STEPS)
    world.train(whole)
    config = world.config("beside", training={**STEPS, "save_every": 1}, disk={"hard_free_gb": 0.0})
    directory = world.paths(config).checkpoints("distill")
    directory.parent.mkdir(parents=True)
    directory.symlink_to(small_disk)
    greedy = f"head -c 100000000 /dev/zero > {small_disk}/neighbour"

    def fill() -> None:
        assert subprocess.run(["sh", "-c", greedy], capture_output=True, check=False).returncode != 0

    with contextlib.suppress(EnvironmentFault):
        train_worker(world.job(config), WorkerGroup(), Quiet(8, fill))
    kept = list_checkpoints(directory)
    assert {2, 5} < {step_of(path) for path in kept} and all(verify_checkpoint(path) for path in kept)
    (small_disk / "neighbour").unlink()
    world.train(config)
    assert world.weights(config) == world.weights(whole)


def test_an_interrupted_driver_asks_first_and_waits(tmp_path: Path) -> None:
    request = tmp_path / "stop.json"
    saved = threading.Event()

    def fit() -> None:
        deadline = time.monotonic() + 60
        while not request.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        saved.set()

    def interrupt(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    metrics = tmp_path / "metrics.jsonl"
    tail = launch.MetricsTail(metrics)
    metrics.write_text('{"step": 1}\n')
    with pytest.raises(KeyboardInterrupt):
        launch._fit(fit, tail, interrupt, request)
    assert saved.is_set() and not request.exists()


def test_a_write_that_fails_is_tried_again_after_old_ones_went(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F14: a quota that statvfs doesn't tell: step 15's write fails once, with 12 to 14 on disk."""
    config = world.config(training={**STEPS, "save_every": 1})
    directory = world.paths(config).checkpoints("distill")
    save, failures = saving.save_checkpoint, []

    def refuse_once(path: Path, step: int, **content: Any) -> Path:
        if step == 15 and not failures:
            failures.append([step_of(one) for one in list_checkpoints(directory)])
            raise EnvironmentFault("the disk is full")
        return save(path, step, **content)

    monkeypatch.setattr(saving, "save_checkpoint", refuse_once)
    world.train(config)
    assert failures == [[2, 5, 10, 12, 13, 14]]
    found = [step_of(path) for path in list_checkpoints(directory)]
    assert found == [2, 5, 10, 15, 16, 17, 18, 19, 20]
    log = [json.loads(line) for line in world.paths(config).run_log.read_text().splitlines()]
    assert next(line["deleted"] for line in log if line.get("step") == 15) == [12, 13]

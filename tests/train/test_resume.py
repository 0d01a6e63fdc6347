"""Workers look for the newest sound checkpoint together, and what they took from it is their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from raystill.checkpoint import store
from raystill.checkpoint.store import LatestCheckpoint, latest_valid, save_checkpoint
from raystill.errors import EnvironmentFault
from raystill.train.assembly import assemble
from raystill.train.group import WorkerGroup
from raystill.train.resume import find_latest, restore_latest

SIZE = 3
CPU = torch.device("cpu")


@dataclass
class Meeting:
    """Where the threads of one test exchange numbers."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(SIZE, timeout=60))
    numbers: list[int] = field(default_factory=lambda: [0] * SIZE)


@dataclass(frozen=True)
class ThreadGroup(WorkerGroup):
    """Workers that are threads of this process."""

    size: int = SIZE
    meeting: Meeting = field(default_factory=Meeting)

    def most(self, number: int, device: torch.device) -> int:
        self.meeting.numbers[self.rank] = number
        self.meeting.barrier.wait()
        largest = max(self.meeting.numbers)
        self.meeting.barrier.wait()
        return largest


def by_all(work: Callable[[ThreadGroup], LatestCheckpoint]) -> list[LatestCheckpoint]:
    meeting = Meeting()
    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(work, [ThreadGroup(rank=rank, meeting=meeting) for rank in range(SIZE)]))


def save(directory: Path, *steps: int) -> None:
    for step in steps:
        groups = {"model": {"w": torch.full((64,), float(step))}, "optimizer": {"m": torch.ones(128)}}
        save_checkpoint(directory, step, tensors=groups, state={"step": step})


def test_every_file_is_read_by_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 4, 6)
    hashed: list[str] = []
    sha256 = store.sha256_file

    def note(file: Path) -> str:
        hashed.append(file.name)
        return sha256(file)

    monkeypatch.setattr(store, "sha256_file", note)
    found = by_all(lambda group: find_latest(tmp_path, group, CPU))
    assert found == [latest_valid(tmp_path)] * SIZE and found[0].step == 6
    del hashed[len(hashed) // 2 :]  # those of `latest_valid`
    assert sorted(hashed) == ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_damage_that_one_worker_meets_is_passed_over_by_all(tmp_path: Path, name: str) -> None:
    """F17."""
    save(tmp_path, 4, 6)
    file = tmp_path / "step-00000006" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = by_all(lambda group: find_latest(tmp_path, group, CPU))
    assert [one.step for one in found] == [4] * SIZE
    ((path, why),) = found[0].passed_over  # the first worker's answer is what the run's log says
    assert path == file.parent and name in why
    file.unlink()
    (tmp_path / "step-00000004").rename(tmp_path / "elsewhere")
    found = by_all(lambda group: find_latest(tmp_path, group, CPU))
    assert [one.path for one in found] == [None] * SIZE


def test_workers_that_see_other_checkpoints_stop_together(tmp_path: Path) -> None:
    directories = [tmp_path / str(rank) for rank in range(SIZE)]
    save(directories[0], 4, 6)
    save(directories[1], 4)
    refused: list[str] = []

    def look(group: ThreadGroup) -> LatestCheckpoint:
        with pytest.raises(EnvironmentFault, match="newest is of step 6") as caught:
            find_latest(directories[group.rank], group, CPU)
        refused.append(caught.value.what)
        return LatestCheckpoint(None, None)

    by_all(look)
    assert len(refused) == SIZE and any("sees none" in what for what in refused)


def test_a_resumed_run_holds_no_file_of_what_it_resumed_from(world: Any) -> None:
    """Its space on the disk is free once retention has let it go."""
    config = world.config()
    world.train(config)
    run = assemble(world.job(config), WorkerGroup())
    restore_latest(run)
    assert run.state.step == 6 and run.state.optimizer.state
    directory = world.paths(config).checkpoints("distill")
    assert str(directory) not in Path("/proc/self/maps").read_text(encoding="utf-8")

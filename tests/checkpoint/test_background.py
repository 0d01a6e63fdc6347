"""Writing beside training: what is saved is the state of the call, one at a time, and errors come back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raystill.checkpoint.background import BackgroundWriter
from raystill.checkpoint.store import latest_valid, load_checkpoint, save_checkpoint
from raystill.errors import EnvironmentFault

SCRIPT = Path(__file__).with_name("crash_background.py")


@pytest.fixture
def writer() -> Iterator[BackgroundWriter]:
    made = BackgroundWriter()
    yield made
    made.close()


def test_what_is_saved_is_the_state_at_the_call(writer: BackgroundWriter, tmp_path: Path) -> None:
    tensors = {"model": {f"w{i}": torch.full((500_000,), float(i)) for i in range(8)}}
    for step in (1, 2, 3):
        writer.submit(
            tensors, lambda copies, step=step: save_checkpoint(tmp_path, step, tensors=copies, state={})
        )
        writer.wait_copied()
        for tensor in tensors["model"].values():
            tensor += 1
    last = writer.flush()
    assert last is not None and last.name == "step-00000003"
    for step in (1, 2, 3):
        content = load_checkpoint(tmp_path / f"step-{step:08d}")
        for i in range(8):
            assert bool((content.tensors["model"][f"w{i}"] == i + step - 1).all())


def test_the_step_waits_for_the_copy_and_the_next_save_for_the_disk(writer: BackgroundWriter) -> None:
    disk_done, order = threading.Event(), []

    def publish(copies: Any) -> Path:
        disk_done.wait(300)
        order.append(float(copies["model"]["w"][0]))
        return Path()

    weight = torch.zeros(4)
    writer.submit({"model": {"w": weight}}, publish)
    writer.wait_copied()
    weight += 1
    writer.raise_if_failed()
    assert order == []
    before = writer.blocked_seconds
    started = time.monotonic()
    threading.Timer(0.1, disk_done.set).start()
    writer.submit({"model": {"w": weight}}, publish)
    assert order == [0.0] and time.monotonic() - started >= 0.1
    writer.flush()
    assert order == [0.0, 1.0] and writer.blocked_seconds > before


def test_an_error_comes_back_once_and_at_the_next_chance(writer: BackgroundWriter) -> None:
    def fail(copies: Any) -> Path:
        raise EnvironmentFault("the disk is full")

    tensors = {"model": {"w": torch.zeros(4)}}
    writer.submit(tensors, fail)
    writer.wait_copied()
    with pytest.raises(EnvironmentFault, match="full"):
        writer.submit(tensors, lambda copies: Path("never"))
    assert writer.flush() is None
    writer.submit(tensors, fail)
    deadline = time.monotonic() + 60
    with pytest.raises(EnvironmentFault):
        while time.monotonic() < deadline:
            writer.raise_if_failed()


def test_without_memory_for_a_copy_the_tensors_are_written_as_they_are(
    writer: BackgroundWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10))
    weight, seen = torch.zeros(100), []

    def publish(copies: Any) -> Path:
        time.sleep(0.05)
        seen.append(copies["model"]["w"] is weight)
        return Path()

    writer.submit({"model": {"w": weight}}, publish)
    writer.wait_copied()
    assert seen == [True]


def written_bytes() -> int:
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes with /proc")
def test_every_byte_is_written_once(writer: BackgroundWriter, tmp_path: Path) -> None:
    tensors = {"model": {"w": torch.ones(1_000_000)}, "optimizer": {"m": torch.ones(2_000_000)}}
    before = written_bytes()
    writer.submit(tensors, lambda copies: save_checkpoint(tmp_path, 1, tensors=copies, state={}))
    path = writer.flush()
    assert path is not None
    on_disk = sum(file.stat().st_size for file in path.iterdir())
    assert written_bytes() - before < 12_000_000 * 1.01
    assert 12_000_000 < on_disk < 12_000_000 * 1.01


def test_kill_9_at_every_point_of_a_background_write_leaves_whole_checkpoints(tmp_path: Path) -> None:
    """F16."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=900, check=True
    )
    killed = json.loads(done.stdout)
    assert killed["checkpoint:copied"] == 4 and killed["checkpoint:group_written"] == 8
    places = [path for path in sorted(tmp_path.iterdir()) if path.is_dir()]
    assert len(places) == sum(killed.values()) + len(killed)
    for place in places:
        promised = int((place / "progress").read_text()) if (place / "progress").exists() else 0
        found = latest_valid(place)
        assert found.passed_over == () and (found.step or 0) >= promised
        if found.path is not None:
            content = load_checkpoint(found.path)
            assert bool((content.tensors["model"]["w"] == found.step).all())
            assert bool((content.tensors["optimizer"]["m"] == found.step).all())


def test_a_save_computes_in_one_thread_and_leaves_trainings_threads_alone(writer: BackgroundWriter) -> None:
    before, seen = torch.get_num_threads(), []

    def publish(copies: Any) -> Path:
        seen.append(torch.get_num_threads())
        return Path()

    torch.set_num_threads(3)
    try:
        writer.submit({"model": {"w": torch.zeros(100_000)}}, publish)
        writer.flush()
        assert (seen, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)

"""A Ray whose process has died is noticed once, and one that lives or is put down in order is not (F3)."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raystill.cluster.ray_watch import watch_ray
from raystill.errors import RemoteError


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child of this process that bears the raylet's name."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    child = subprocess.Popen([shutil.copy(sleep, tmp_path / "raylet"), "600"])
    yield child
    child.kill()
    child.wait()


def test_a_process_that_ends_is_told_once(raylet: subprocess.Popen[bytes]) -> None:
    """F3."""
    told: list[RemoteError] = []
    noticed = threading.Event()

    def on_death(error: RemoteError) -> None:
        told.append(error)
        noticed.set()

    with watch_ray(on_death):
        assert not told
        raylet.kill()
        assert noticed.wait(timeout=60)
    assert [error.what for error in told] == ["Ray died: its process raylet on this machine has ended"]
    assert "run the same command again" in told[0].problems[0].fix


def test_what_ends_after_the_watch_is_nobodys_business(raylet: subprocess.Popen[bytes]) -> None:
    told: list[RemoteError] = []
    with watch_ray(told.append):
        pass
    raylet.kill()
    raylet.wait()
    assert told == []

"""Ray for a run's steps: what later steps could never have is refused before the first one begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import raystill.cluster.demand
import raystill.cluster.disk_monitor
import raystill.cluster.ray_session
from raystill.cluster.run_session import RunSession
from raystill.config.schema import Config
from raystill.errors import EnvironmentFault
from raystill.run.interrupts import sigterm_interrupts
from raystill.run.paths import RunPaths


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that the cluster is asked about; it will never have `distill`."""
    names: list[str] = []

    def require(config: Config, stage: str) -> None:
        names.append(stage)
        if stage == "distill":
            raise EnvironmentFault("9 training workers, and no node has that much")

    @contextmanager
    def no_ray(config: Config) -> Iterator[None]:
        yield

    monkeypatch.setattr(raystill.cluster.ray_session, "ray_session", no_ray)
    monkeypatch.setattr(raystill.cluster.disk_monitor, "watch_disks", lambda *watched: nullcontext())
    monkeypatch.setattr(raystill.cluster.demand, "require_capacity", require)
    return names


def start(tmp_path: Path, *steps: tuple[Any, list[Any]]) -> list[dict[str, Any]]:
    """The events of a session whose steps begin one after the other."""
    events: list[dict[str, Any]] = []
    paths = RunPaths(tmp_path, store=tmp_path / "teacher_store")
    with RunSession(Config(), paths, events.append) as ray, sigterm_interrupts():
        for stage, later in steps:
            ray.start(stage, later)
    return events


def test_what_a_later_step_can_never_have_is_refused_first(asked: list[str], tmp_path: Path) -> None:
    """I33."""
    with pytest.raises(EnvironmentFault, match="9 training workers"):
        start(tmp_path, ("generate", ["distill"]))
    assert asked == ["distill"]


def test_later_steps_are_asked_about_once(asked: list[str], tmp_path: Path) -> None:
    assert start(tmp_path, ("generate", ["sft"]), ("sft", [])) == []
    assert asked == ["sft", "generate", "sft"]

"""Checkpoints that older programs saved are gone on from; those of newer ones are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raystill.checkpoint.store import SCHEMA_VERSION, latest_valid, load_checkpoint
from raystill.errors import DataError
from raystill.run.publish import sha256_file
from raystill.train.group import WorkerGroup
from raystill.train.old_state import LISTED_SUMS, current_state
from raystill.train.worker import train_worker


class StopError(Exception):
    """Ends a run from within."""


class StopAtSave:
    """A reporter that ends the run at its first save."""

    def report(self, step: int, metrics: dict[str, Any]) -> None:
        raise StopError


def window_sums(state: dict[str, Any]) -> list[float]:
    return [state["window_sums"][name] for name in LISTED_SUMS]


def as_version_1(state: dict[str, Any]) -> dict[str, Any]:
    """The last state that said it was version 1."""
    return state | {"window_sums": window_sums(state)}


def as_first_version(state: dict[str, Any]) -> dict[str, Any]:
    """The first one: no balance, no spikes, and fewer sums."""
    counters = {name: state["counters"][name] for name in ("nonfinite_steps", "nonfinite_streak", "tokens")}
    older = state | {"counters": counters, "window_sums": window_sums(state)[:6]}
    del older["balance"]
    return older


def rewrite(path: Path, version: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Make a saved checkpoint what another program would have saved."""
    file, manifest_file = path / "state.json", path / "manifest.json"
    file.write_text(json.dumps(change(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")
    manifest = json.loads(manifest_file.read_text(encoding="utf-8")) | {"schema_version": version}
    manifest["files"]["state.json"] = {"sha256": sha256_file(file), "size_bytes": file.stat().st_size}
    manifest_file.write_text(json.dumps(manifest), encoding="utf-8")


def train_to_first_save(world: Any, config: Any) -> Path:
    with pytest.raises(StopError):
        train_worker(world.job(config), WorkerGroup(), StopAtSave())
    path = latest_valid(world.paths(config).checkpoints("distill")).path
    assert path is not None
    return path


def means(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key in ("step", "train/loss", "train/ce")}


@pytest.mark.parametrize("change", [as_version_1, as_first_version])
def test_an_older_checkpoint_is_gone_on_from(world: Any, change: Callable[..., dict[str, Any]]) -> None:
    """F31."""
    steps = {"steps": 20, "save_every": 3, "log_every": 4}
    whole, upgraded = world.config("whole", training=steps), world.config("upgraded", training=steps)
    world.train(whole)
    path = train_to_first_save(world, upgraded)
    rewrite(path, 1, change)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    world.train(upgraded)
    assert world.weights(upgraded) == world.weights(whole)
    ours, theirs = (list(map(means, world.metrics(config))) for config in (upgraded, whole))
    assert ours[1:] == theirs[1:]
    # The window that was open covers all its steps where the older list says the same as today's.
    assert (ours[0] == theirs[0]) == (change is as_version_1)
    assert path.is_dir() is False or {file.name: file.read_bytes() for file in path.iterdir()} == before
    newest = load_checkpoint(latest_valid(world.paths(upgraded).checkpoints("distill")).path)
    assert newest.schema_version == SCHEMA_VERSION and current_state(newest) == newest.state


def test_a_newer_checkpoint_is_named_and_nothing_is_trained_over_it(world: Any) -> None:
    """F31, I43."""
    config = world.config()
    path = train_to_first_save(world, config)
    rewrite(path, SCHEMA_VERSION + 1, lambda state: state | {"more": 1})
    with pytest.raises(DataError, match=f"newer program: schema version {SCHEMA_VERSION + 1}") as caught:
        world.train(config)
    assert caught.value.exit_code == 3 and str(path) in str(caught.value)
    assert [one.name for one in path.parent.iterdir()] == [path.name]

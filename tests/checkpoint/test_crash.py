"""kill -9 at every step of saving and deleting: the resume point is whole and never older than promised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raystill.checkpoint.policy import RetentionRules
from raystill.checkpoint.retention import apply_retention
from raystill.checkpoint.store import latest_valid, list_checkpoints, load_checkpoint, save_checkpoint

SCRIPT = Path(__file__).with_name("crash_saver.py")


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    directory = tmp_path_factory.mktemp("crash")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory)], capture_output=True, text=True, timeout=900, check=True
    )
    return directory, json.loads(done.stdout)


def test_every_failpoint_was_passed(crashed: tuple[Path, dict[str, int]]) -> None:
    assert crashed[1] == {
        "checkpoint:group_written": 4,
        "publish_file:before_rename": 8,  # state.json and manifest.json of four saves
        "publish_file:after_rename": 8,
        "publish_directory:before_rename": 4,
        "publish_directory:after_rename": 4,
        "retention:renamed": 2,
    }


def test_the_newest_published_step_is_there_and_whole(crashed: tuple[Path, dict[str, int]]) -> None:
    """F16."""
    directories = [path for path in sorted(crashed[0].iterdir()) if path.is_dir()]
    assert len(directories) == sum(crashed[1].values()) + len(crashed[1])
    for directory in directories:
        promised = int((directory / "progress").read_text()) if (directory / "progress").exists() else 0
        found = latest_valid(directory)
        assert found.passed_over == ()
        assert (found.step or 0) >= promised
        if found.path is not None:
            content = load_checkpoint(found.path)
            assert content.state == {"step": found.step}
            assert torch.equal(content.tensors["model"]["w"], torch.full((64,), float(found.step or 0)))


def test_the_next_save_cleans_up(crashed: tuple[Path, dict[str, int]]) -> None:
    """F16."""
    for directory in sorted(crashed[0].iterdir()):
        if not directory.is_dir():
            continue
        save_checkpoint(directory, 5, tensors={"model": {"w": torch.ones(2)}}, state={})
        apply_retention(directory, RetentionRules(total_steps=400, max_recent=1, min_free_gb=0.0), current=5)
        names = {path.name for path in directory.iterdir()} - {"progress"}
        assert names == {"step-00000005"}
        assert len(list_checkpoints(directory)) == 1

"""Paths follow from the configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from raystill.config.schema import Config
from raystill.run.paths import RunPaths, StageName


def test_every_path_lies_inside_the_run_and_nothing_is_created(tmp_path: Path) -> None:
    paths = RunPaths.from_config(Config.model_validate({"run": {"name": "r", "dir": str(tmp_path)}}))
    stages: tuple[StageName, ...] = get_args(StageName)
    found = [paths.stage_dir(stage) for stage in stages]
    found += [paths.store, paths.lock, paths.run_log, paths.report, paths.prompt_table, paths.teacher_jsonl]
    assert all(path.is_relative_to(tmp_path / "r") for path in found)
    assert len({paths.stage_dir(stage) for stage in stages}) == len(stages)
    assert list(tmp_path.iterdir()) == []


def test_a_store_may_be_shared_between_runs(tmp_path: Path) -> None:
    stores = {
        RunPaths.from_config(
            Config.model_validate(
                {"run": {"name": name}, "teacher": {"store": {"path": str(tmp_path / "s")}}}
            )
        ).store
        for name in ("a", "b")
    }
    assert stores == {tmp_path / "s"}

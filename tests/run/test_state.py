"""Where a run may be, and how far its stages are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from raystill.config.schema import Config
from raystill.errors import ConfigError, EnvironmentFault
from raystill.run.paths import RunPaths
from raystill.run.stage import Stage, StageContext, StageResult, execute
from raystill.run.state import load_stage_state, validate_run_root


def make(tmp_path: Path, **sections: Any) -> tuple[Config, RunPaths]:
    config = Config.model_validate({"run": {"name": "r", "dir": str(tmp_path / "runs")}} | sections)
    return config, RunPaths.from_config(config)


def one_file(context: StageContext) -> StageResult:
    path = context.output / "x"
    path.write_text("x", encoding="utf-8")
    return StageResult(files=[path])


def interrupted(context: StageContext) -> StageResult:
    raise KeyboardInterrupt


STAGE = Stage("prepare", ("run.seed",), lambda config: (), one_file)


def test_states_follow_a_stage_from_absent_to_changed(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    assert load_stage_state(STAGE, config, paths).status == "absent"
    broken = Stage("prepare", ("run.seed",), lambda config: (), interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(broken, config, paths)
    assert load_stage_state(STAGE, config, paths).status == "started"
    execute(STAGE, config, paths)
    state = load_stage_state(STAGE, config, paths)
    assert state.status == "complete" and state.manifest is not None
    other, _ = make(tmp_path, run={"name": "r", "dir": str(tmp_path / "runs"), "seed": 3})
    changed = load_stage_state(STAGE, other, paths)
    assert changed.status == "changed" and changed.differences == ("run.seed: 0 -> 3",)


def test_a_new_an_empty_and_an_own_directory_are_fine(tmp_path: Path) -> None:
    config, paths = make(tmp_path)
    validate_run_root(config, paths)
    paths.root.mkdir(parents=True)
    validate_run_root(config, paths)
    paths.resolved_config.write_text("{}", encoding="utf-8")
    (paths.root / "notes.txt").write_text("", encoding="utf-8")
    validate_run_root(config, paths)


def test_a_file_a_foreign_directory_and_a_file_above_are_refused(tmp_path: Path) -> None:
    """I36."""
    config, paths = make(tmp_path)
    paths.root.mkdir(parents=True)
    (paths.root / "photo.jpg").write_text("", encoding="utf-8")
    with pytest.raises(EnvironmentFault, match="not a run"):
        validate_run_root(config, paths)
    (paths.root / "photo.jpg").unlink()
    paths.root.rmdir()
    paths.root.write_text("", encoding="utf-8")
    with pytest.raises(EnvironmentFault, match="is a file"):
        validate_run_root(config, paths)
    paths.root.unlink()
    paths.root.parent.rmdir()
    paths.root.parent.write_text("", encoding="utf-8")
    with pytest.raises(EnvironmentFault, match="can't be written"):
        validate_run_root(config, paths)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_write_permission_is_refused(tmp_path: Path) -> None:
    """I36."""
    config, paths = make(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(EnvironmentFault, match="not writable"):
            validate_run_root(config, paths)
    finally:
        tmp_path.chmod(0o700)


def test_a_run_inside_a_prompt_source_is_refused(tmp_path: Path) -> None:
    """I36."""
    config, paths = make(tmp_path, prompts={"sources": [{"path": str(tmp_path)}]})
    with pytest.raises(ConfigError, match="inside a prompt source"):
        validate_run_root(config, paths)


@pytest.mark.parametrize("name", ["a/b", "../up", "a;b", "", "x" * 300, ".hidden", "a b", "a\0b", "a\nb"])
def test_run_names_are_plain(name: str, tmp_path: Path) -> None:
    """I37."""
    with pytest.raises(ValueError, match="name"):
        make(tmp_path, run={"name": name})


def test_a_name_too_long_for_the_disk_is_refused(tmp_path: Path) -> None:
    """I37."""
    config, paths = make(tmp_path, run={"name": "r", "dir": str(tmp_path / ("\u00e9" * 200))})
    with pytest.raises(EnvironmentFault, match="too long"):
        validate_run_root(config, paths)

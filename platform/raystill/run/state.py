"""What is on disk of a run, read without touching it: is this directory a run, and how far is each stage."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raystill.config.schema import Config
from raystill.errors import ConfigError, EnvironmentFault
from raystill.run.manifest import Manifest, load_manifest
from raystill.run.paths import STARTED_NAME, RunPaths
from raystill.run.stage import Stage, changed_keys

Status = Literal["complete", "started", "changed", "absent"]


@dataclass(frozen=True)
class StageState:
    """How far a stage is. `differences` name what changed since its output was begun."""

    status: Status
    differences: tuple[str, ...] = ()
    manifest: Manifest | None = None


def load_stage_state(stage: Stage, config: Config, paths: RunPaths) -> StageState:
    """The state of a stage's output against `config`.

    Inputs that are not complete themselves are not compared. Raises DataError for an unreadable manifest.
    """
    output = paths.stage_dir(stage.name)
    manifest = load_manifest(output)
    if manifest is not None:
        recorded = {"config": manifest.config, "inputs": manifest.inputs}
    else:
        try:
            recorded = json.loads((output / STARTED_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return StageState("absent")
    differences = changed_keys(recorded["config"], stage.settings(config))
    for name in stage.inputs(config):
        now = load_manifest(paths.stage_dir(name))
        if now is not None and recorded["inputs"].get(name) != now.fingerprint:
            differences.append(f"input {name}: made from another version")
    if differences:
        return StageState("changed", tuple(differences), manifest)
    return StageState("complete" if manifest is not None else "started", (), manifest)


def validate_run_root(config: Config, paths: RunPaths) -> None:
    """Raise before anything is written if `run.dir`/`run.name` can't become or isn't a run directory.

    ConfigError: it lies inside a prompt source. EnvironmentFault: it is a file, its name is too long, it is
    not writable, or it holds files that no run wrote; those are never touched.
    """
    try:
        _validate_place(config, paths)
    except OSError as error:
        raise EnvironmentFault(
            f"the run directory can't be used: {error.strerror}",
            where=str(paths.root),
            fix="choose another run.dir",
        ) from error


def _validate_place(config: Config, paths: RunPaths) -> None:
    root = paths.root
    _validate_outside_sources(config, root)
    if root.exists() and not root.is_dir():
        raise EnvironmentFault(
            "the run directory is a file", where=str(root), fix="choose another run.name or run.dir"
        )
    if root.is_dir() and not is_run(paths) and any(root.iterdir()):
        raise EnvironmentFault(
            "the run directory holds files that are not a run's; they are left as they are",
            where=str(root),
            fix="choose another run.name or run.dir, or an empty directory",
        )
    place = root
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        reason = "not writable" if place.is_dir() else "a file"
        raise EnvironmentFault(
            f"the run directory can't be written: {place} is {reason}",
            where=str(root),
            fix="choose another run.dir, or change the permissions",
        )


def is_run(paths: RunPaths) -> bool:
    """Whether raystill made this directory."""
    return paths.resolved_config.exists() or paths.lock.exists() or paths.run_log.exists()


def _validate_outside_sources(config: Config, root: Path) -> None:
    sources = [source.path for source in config.prompts.sources]
    sources += [item.external_local_path for item in config.datasets if item.external_local_path]
    for source in sources:
        folder = Path(source).expanduser().resolve()
        if folder.is_dir() and root.resolve().is_relative_to(folder):
            raise ConfigError(
                "the run directory lies inside a prompt source, so a run would read its own output",
                where=f"{root} inside {folder}",
                fix="choose another run.dir",
            )

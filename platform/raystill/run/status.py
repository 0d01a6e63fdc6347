"""How far a run is, from what it wrote: manifests, records of starts, the log, the lock. Changes nothing.

Rows of a stage in progress are those of its last `progress` event; a killed process may have committed a few
more, which the next start finds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raystill.errors import DataError
from raystill.run.events import seconds_left
from raystill.run.lock import is_locked as lock_is_held
from raystill.run.manifest import Manifest, load_manifest
from raystill.run.paths import STAGE_NAMES, STARTED_NAME, RunPaths, StageName

Condition = Literal["complete", "running", "failed", "interrupted", "absent"]

_FIRST_PROGRESS = "first progress"
# What Ctrl-C, SIGTERM and `raystill stop` end a stage with.
_INTERRUPT = "KeyboardInterrupt"
_PLANNED = ("requests_planned", "scores_planned")


@dataclass(frozen=True)
class StageStatus:
    """One stage. Counts are None where nothing says them; `rows_saved` are answers that the store had.

    `cost_usd` is what the store's answers cost (complete) or what this stage's last start has spent.
    """

    name: StageName
    condition: Condition
    done: int | None = None
    left: int | None = None
    rejected: int | None = None
    rows_saved: int | None = None
    cost_usd: float | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    seconds: float | None = None
    seen_seconds_ago: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """A run. `is_locked` is whether a process works on it now."""

    root: str
    is_locked: bool
    stages: tuple[StageStatus, ...]


def read_status(paths: RunPaths) -> RunStatus:
    """Read it. Raises DataError where there is no run, or where a manifest can't be read."""
    if not paths.run_log.exists() and not paths.resolved_config.exists():
        raise DataError(
            "there is no run here",
            where=str(paths.root),
            fix="give the directory of a run: <run.dir>/<run.name>",
        )
    events: dict[str, dict[str, dict[str, Any]]] = {}
    for event in _iter_events(paths.run_log):
        name, stage = event.get("event"), event.get("stage")
        if name == "stage_started":
            events[str(stage)] = {}
        of_stage = events.setdefault(str(stage), {})
        if name == "progress":
            of_stage.setdefault(_FIRST_PROGRESS, event)
        of_stage[str(name)] = event
    is_locked = lock_is_held(paths.lock)
    running = _running_stage(events) if is_locked else None
    stages = tuple(
        _stage_status(name, paths.stage_dir(name), events.get(name, {}), is_running=name == running)
        for name in STAGE_NAMES
    )
    return RunStatus(str(paths.root), is_locked, stages)


def _stage_status(
    name: StageName, output: Path, events: dict[str, dict[str, Any]], *, is_running: bool
) -> StageStatus:
    manifest = load_manifest(output)
    if manifest is not None and not is_running:
        return _complete(name, manifest)
    if not events and not (output / STARTED_NAME).exists():
        return StageStatus(name, "absent")
    error = events.get("stage_failed", {}).get("error", _INTERRUPT)
    condition: Condition = "running" if is_running else "interrupted" if error == _INTERRUPT else "failed"
    progress = events.get("progress", {})
    planned = next((events[event] for event in _PLANNED if event in events), {})
    saved = planned.get("reused")
    total = planned.get("requests", progress.get("total"))
    finished = None if not progress else int(progress.get("done", 0))
    rejected = progress.get("rejected")
    done = None if finished is None else finished - (rejected or 0) + (saved or 0)
    newest = max((float(event.get("time", 0.0)) for event in events.values()), default=0.0)
    return StageStatus(
        name,
        condition,
        done=done,
        left=None if total is None or done is None else max(0, int(total) - done - (rejected or 0)),
        rejected=rejected,
        rows_saved=saved,
        cost_usd=progress.get("cost_usd"),
        rate=progress.get("tokens_per_s"),
        eta_seconds=seconds_left(events[_FIRST_PROGRESS], progress) if is_running and progress else None,
        seen_seconds_ago=round(max(0.0, time.time() - newest), 1) if newest else None,
    )


def _complete(name: StageName, manifest: Manifest) -> StageStatus:
    counts, metrics = manifest.counts, manifest.metrics
    done = next((counts[key] for key in ("done", "scored", "kept", "rows") if key in counts), None)
    return StageStatus(
        name,
        "complete",
        done=done,
        left=0 if done is not None else None,
        rejected=counts.get("rejected"),
        rows_saved=counts.get("reused"),
        cost_usd=metrics.get("cost_usd"),
        rate=metrics.get("tokens_per_s"),
        seconds=manifest.seconds,
    )


def _running_stage(events: dict[str, dict[str, dict[str, Any]]]) -> str | None:
    """The stage that began last and has not ended."""
    began = [
        (float(found["stage_started"].get("time", 0.0)), stage)
        for stage, found in events.items()
        if "stage_started" in found and "stage_finished" not in found and "stage_failed" not in found
    ]
    return max(began)[1] if began else None


def _iter_events(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of the log; a torn one is what a kill leaves."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event

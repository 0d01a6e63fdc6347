"""Which checkpoints stay. The decision is pure and knows only what is on disk, so it holds across restarts.

Kept: the milestones at 10, 25, 50, 75, 90 and 100 % of the steps; besides them the `max_recent` most recent
ones (a milestone takes no slot); the one being saved and every one in use. Where less than `min_free_gb` is
free, the oldest recent ones go one by one, until the disk has some slack again or one is left.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from raystill.checkpoint.store import step_directory, step_of
from raystill.errors import EnvironmentFault
from raystill.run.failpoint import failpoint
from raystill.run.publish import TEMPORARY_PREFIX, fsync_path

MILESTONE_PERCENTS = (10, 25, 50, 75, 90, 100)
TRASH_PREFIX = ".trash-"
# Under pressure, room is made up to this multiple of the limit: the count does not swing with every save.
RELIEF = 1.2
_GIB = 2**30


@dataclass(frozen=True)
class RetentionPlan:
    """Steps to keep and steps to delete, oldest first. Together they are what was on disk."""

    keep: tuple[int, ...]
    delete: tuple[int, ...]


@dataclass(frozen=True)
class RetentionResult:
    """What `apply_retention` did; a directory that could not be removed is named, never hidden."""

    plan: RetentionPlan
    deleted: tuple[int, ...]
    failed: tuple[tuple[Path, str], ...]


def milestone_steps(total_steps: int) -> tuple[int, ...]:
    """The steps whose checkpoints stay for good: ceil(p * total_steps / 100), ascending, without repeats."""
    if total_steps <= 0:
        return ()
    return tuple(sorted({-(-total_steps * percent // 100) for percent in MILESTONE_PERCENTS}))


def plan_retention(
    sizes_gb: Mapping[int, float],
    *,
    total_steps: int,
    max_recent: int,
    free_gb: float,
    min_free_gb: float,
    current: int | None = None,
    in_use: Collection[int] = (),
) -> RetentionPlan:
    """Decide what stays of the checkpoints on disk (`sizes_gb`: step to GiB).

    `current` is the step that was just saved, `in_use` those that a resume or an evaluation reads. The first
    checkpoint at or after a milestone stands for it where there is none exactly there. Steps above `current`
    are leftovers of an abandoned continuation and take no recent slot.
    """
    on_disk = sorted(sizes_gb)
    alive = [step for step in on_disk if current is None or step <= current]
    milestones = {step for wanted in milestone_steps(total_steps) for step in _first_from(alive, wanted)}
    protected = milestones | set(in_use) | ({current} if current is not None else set())
    recent = [step for step in alive if step not in milestones][-max(1, max_recent) :]
    deleted = set(on_disk) - protected - set(recent)
    if free_gb < min_free_gb:
        free_gb += sum(sizes_gb[step] for step in deleted)
        while free_gb < min_free_gb * RELIEF and len(recent) > 1:
            oldest = recent.pop(0)
            if oldest not in protected:
                deleted.add(oldest)
                free_gb += sizes_gb[oldest]
    return RetentionPlan(
        keep=tuple(step for step in on_disk if step not in deleted), delete=tuple(sorted(deleted))
    )


def _first_from(steps: list[int], wanted: int) -> list[int]:
    return [step for step in steps if step >= wanted][:1]


def apply_retention(
    directory: Path,
    *,
    total_steps: int,
    max_recent: int,
    min_free_gb: float,
    current: int | None = None,
    in_use: Collection[int] = (),
) -> RetentionResult:
    """Delete what `plan_retention` lets go in `directory`, and what a crash left of deletions and saves.

    A checkpoint is renamed before it is deleted, so half of one never keeps a checkpoint's name. Foreign
    files are left alone. Call it from the one process that saves, after a save.
    """
    if not directory.is_dir():
        return RetentionResult(RetentionPlan((), ()), (), ())
    remove_leftovers(directory)
    sizes_gb = {
        step: _size_bytes(path) / _GIB
        for path in directory.iterdir()
        if (step := step_of(path)) is not None and path.is_dir()
    }
    plan = plan_retention(
        sizes_gb,
        total_steps=total_steps,
        max_recent=max_recent,
        free_gb=free_bytes(directory) / _GIB,
        min_free_gb=min_free_gb,
        current=current,
        in_use=in_use,
    )
    deleted, failed = [], []
    for step in plan.delete:
        path = step_directory(directory, step)
        try:
            _delete(path)
        except OSError as error:
            failed.append((path, error.strerror or type(error).__name__))
        else:
            deleted.append(step)
    return RetentionResult(plan, tuple(deleted), tuple(failed))


def remove_leftovers(directory: Path) -> int:
    """Remove half-written saves and half-deleted checkpoints; returns how many there were."""
    leftovers = [
        path for path in directory.iterdir() if path.name.startswith((TRASH_PREFIX, TEMPORARY_PREFIX))
    ]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return len(leftovers)


def free_bytes(path: Path) -> int:
    """Bytes free for us on the filesystem that holds `path`, which need not exist yet."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def require_space(path: Path, size_bytes: int, *, margin: float = 1.1) -> None:
    """Raises EnvironmentFault unless `size_bytes` times `margin` are free where `path` is or will be."""
    free, needed = free_bytes(path), int(size_bytes * margin)
    if free < needed:
        raise EnvironmentFault(
            f"not enough disk: {needed / _GIB:.2f} GiB needed, {free / _GIB:.2f} GiB free",
            where=str(path),
            fix="free some space, lower training.checkpoint_cleanup.max_checkpoints or move the run to a "
            "larger disk, then run again: it resumes",
        )


def _delete(path: Path) -> None:
    trash = path.with_name(f"{TRASH_PREFIX}{secrets.token_hex(6)}-{path.name}")
    os.rename(path, trash)
    fsync_path(path.parent)
    failpoint("retention:renamed")
    shutil.rmtree(trash)


def _size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

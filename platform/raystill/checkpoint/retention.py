"""Retention on disk: what `policy` decides is deleted so that no crash leaves half a checkpoint's name.

Ray Train is told of every checkpoint as a small pointer (`train.pointers`), and its CheckpointConfig rotates
those; the weights are deleted here alone. Of the mechanisms that Ray offers, only that one survives a
directory that is deleted behind Ray's back, a pin that is set later, pressure, and a torn snapshot of Ray's.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from raystill.checkpoint.pins import load_pins
from raystill.checkpoint.policy import Held, RetentionPlan, RetentionRules, plan_retention
from raystill.checkpoint.store import is_whole, load_checkpoint_manifest, step_directory, step_of
from raystill.errors import DataError
from raystill.run.disk import free_bytes
from raystill.run.failpoint import failpoint
from raystill.run.publish import TEMPORARY_PREFIX, fsync_path

TRASH_PREFIX = ".trash-"
_GIB = 2**30


@dataclass(frozen=True)
class RetentionResult:
    """What `apply_retention` did; a directory that could not be removed is named, never hidden."""

    plan: RetentionPlan
    deleted: tuple[int, ...]
    failed: tuple[tuple[Path, str], ...]
    freed_bytes: int


def read_held(directory: Path, metric: str) -> dict[int, Held]:
    """The checkpoints of `directory` by step. Cheap: sizes are compared with the manifest, content is not.

    A directory without a readable manifest is somebody else's, whatever its name: it is never deleted.
    """
    held: dict[int, Held] = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        step = step_of(path)
        if step is None or not path.is_dir():
            continue
        try:
            manifest = load_checkpoint_manifest(path)
        except DataError:
            continue
        held[step] = Held(size_bytes(path) / _GIB, manifest.metrics.get(metric), is_whole(path, manifest))
    return held


def preview_retention(
    directory: Path, rules: RetentionRules, *, current: int | None = None, in_use: Collection[int] = ()
) -> RetentionPlan:
    """What `apply_retention` would do now. Raises DataError for an unreadable list of pins."""
    return plan_retention(
        read_held(directory, rules.metric),
        rules,
        free_gb=free_bytes(directory) / _GIB,
        current=current,
        in_use=in_use,
        pinned=load_pins(directory),
    )


def apply_retention(
    directory: Path,
    rules: RetentionRules,
    *,
    current: int | None = None,
    in_use: Collection[int] = (),
    leftovers: bool = True,
) -> RetentionResult:
    """Delete what the rules let go in `directory`, and, with `leftovers`, what a crash left of deletions and
    saves: not while another process writes to a hidden directory there.

    A checkpoint is renamed before it is deleted, so half of one never keeps a checkpoint's name. Foreign
    files are left alone. Call it from the one process that saves, after a save. Raises DataError for an
    unreadable list of pins, before anything is deleted.
    """
    if not directory.is_dir():
        return RetentionResult(RetentionPlan((), (), {}, max(1, rules.max_recent)), (), (), 0)
    if leftovers:
        remove_leftovers(directory)
    plan = preview_retention(directory, rules, current=current, in_use=in_use)
    deleted, failed, freed = [], [], 0
    for step in plan.delete:
        path = step_directory(directory, step)
        size = size_bytes(path)
        try:
            _delete(path)
        except OSError as error:
            failed.append((path, error.strerror or type(error).__name__))
        else:
            deleted.append(step)
            freed += size
    return RetentionResult(plan, tuple(deleted), tuple(failed), freed)


def remove_leftovers(directory: Path) -> int:
    """Remove half-written saves and half-deleted checkpoints; returns how many there were."""
    leftovers = [
        path
        for path in directory.iterdir()
        if path.name.startswith((TRASH_PREFIX, TEMPORARY_PREFIX)) and path.is_dir()
    ]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return len(leftovers)


def size_bytes(path: Path) -> int:
    """Bytes of all files below `path`; of those that vanish meanwhile, none."""
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _delete(path: Path) -> None:
    trash = path.with_name(f"{TRASH_PREFIX}{secrets.token_hex(6)}-{path.name}")
    os.rename(path, trash)
    fsync_path(path.parent)
    failpoint("retention:renamed")
    shutil.rmtree(trash)

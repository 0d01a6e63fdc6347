"""Disk of a sweep: models of trials that lost go at once, their checkpoints when the budget asks for it.

A running trial's checkpoints obey the run's own retention and are never touched here.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

from raystill.run.publish import discard_directory
from raystill.run.sweep_paths import SweepPaths, TrialPaths
from raystill.tune.records import TrialRecord, best_trial, rank_key

_GB = 10**9


def tidy_trials(
    sweep: SweepPaths,
    records: list[TrialRecord],
    running: Collection[int],
    paths: dict[int, TrialPaths],
    mode: Literal["min", "max"],
    max_gb: float | None,
) -> list[int]:
    """Delete what finished trials no longer need; returns the trials that lost their checkpoints.

    The best trial so far keeps everything, and so do trials that are running or not finished.
    """
    best = best_trial(records, mode)
    finished = [
        record
        for record in records
        if record.outcome != "unfinished"
        and record.number not in running
        and (best is None or record.number != best.number)
    ]
    for record in finished:
        own = paths[record.number]
        for directory in (own.model(own.tuned), own.initial_model(own.tuned)):
            discard_directory(directory)
    lost: list[int] = []
    if max_gb is None:
        return lost
    used = tree_bytes(sweep.root)
    for record in sorted(finished, key=lambda record: rank_key(record, mode), reverse=True):
        if used <= max_gb * _GB:
            break
        directory = paths[record.number].checkpoints(paths[record.number].tuned)
        size = tree_bytes(directory)
        if size:
            discard_directory(directory)
            used -= size
            lost.append(record.number)
    return lost


def tree_bytes(directory: Path) -> int:
    """Bytes of all files below a directory; files that go meanwhile don't count."""
    total = 0
    for folder, _, names in os.walk(directory):  # which passes over folders that go; rglob would raise
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total

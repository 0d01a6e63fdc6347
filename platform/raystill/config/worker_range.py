"""How many workers train."""

from __future__ import annotations

from raystill.config.general import TrainingSection


def worker_range(training: TrainingSection) -> tuple[int, int]:
    """The least and the most workers of `training.num_workers`; equal where it is one number."""
    workers = training.num_workers
    return (workers, workers) if isinstance(workers, int) else (workers[0], workers[1])

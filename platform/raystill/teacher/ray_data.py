"""Ray Data as the pools of this package use it: quiet, patient, and with the workers' own errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raystill.errors import RaystillError


@contextmanager
def ray_data_settings() -> Iterator[None]:
    """Ray Data without its own bars and notices, and without its limit on quiet time."""
    from ray.data import DataContext
    from ray.data.context import AutoscalingConfig

    context = DataContext.get_current()
    wanted: dict[str, Any] = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        # An engine may load for an hour, or wait for a node; a hung worker is seen by its own errors.
        "execution_no_progress_timeout_s": -1,
        # Every record that a worker yields becomes a block at once: that is the progress bar.
        "target_max_block_size": 1,
        "raise_original_map_exception": True,
        "max_consecutive_actor_init_deaths": 0,
        # Shards wait in the pool's queue, not in the actors': full hands are the sign to grow.
        "autoscaling_config": AutoscalingConfig(actor_pool_util_upscaling_threshold=1.0),
    }
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    for name, value in wanted.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


@contextmanager
def original_errors(died: RaystillError) -> Iterator[None]:
    """Take a worker's error out of Ray's wrappings; `died` is raised where Ray gave a worker up."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        original = _find_original(error)
        if original is not None:
            raise original from None
        if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
            raise died from error
        raise


def _find_original(error: BaseException | None) -> RaystillError | None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, RaystillError):
            return error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None

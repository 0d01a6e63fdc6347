"""Ray Data as stages use it: quiet, without its limit on silence, and with workers' own errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raystill.errors import RaystillError

if TYPE_CHECKING:
    import pyarrow as pa


def map_items(
    items: Sequence[Mapping[str, Any]],
    function: Callable[..., Iterator[pa.Table]],
    *,
    num_gpus: int = 0,
    **arguments: Any,
) -> Iterator[pa.Table]:
    """`function(table of one item, **arguments)` for every item, as Ray Data tasks; the tables they yield.

    Tables arrive in any order. A task takes one CPU and `num_gpus`.
    Ray must be running. Raises the RaystillError that a task raised.
    """
    import ray.data

    if not items:
        return
    with ray_data_settings(), original_errors():
        dataset = ray.data.from_items([dict(item) for item in items], override_num_blocks=len(items))
        results = dataset.map_batches(
            function,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs=arguments,
            num_cpus=1,
            num_gpus=num_gpus,
        )
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


@contextmanager
def ray_data_settings(*, streams_records: bool = False) -> Iterator[None]:
    """Ray Data without its own bars and notices, and without its limit on quiet time.

    `streams_records`: for pools of actors that yield small records as they work.
    """
    from ray.data import DataContext
    from ray.data.context import AutoscalingConfig

    context = DataContext.get_current()
    wanted: dict[str, Any] = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        # An engine may load for an hour, or wait for a node; a hung worker is seen by its own errors.
        "execution_no_progress_timeout_s": -1,
        "raise_original_map_exception": True,
    }
    if streams_records:
        # Every record that a worker yields becomes a block at once: that is the progress bar.
        wanted["target_max_block_size"] = 1
        wanted["max_consecutive_actor_init_deaths"] = 0
        # Shards wait in the pool's queue, not in the actors': full hands are the sign to grow.
        wanted["autoscaling_config"] = AutoscalingConfig(actor_pool_util_upscaling_threshold=1.0)
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
def original_errors(died: RaystillError | None = None) -> Iterator[None]:
    """Take a worker's error out of Ray's wrappings; `died` is raised where Ray gave a worker up."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        original = _find_original(error)
        if original is not None:
            raise original from None
        lost = isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError)
        if lost and died is not None:
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

"""Pools of actors that do shards: how many, how much each holds, and what they report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raystill.config.teacher import VllmSection
from raystill.teacher.shards import Shard, shards_to_table

if TYPE_CHECKING:
    import pyarrow as pa

# Shards beyond those that fill a worker: one whose rows wait, one whose last rows trickle out.
_SPARE_SHARDS = 2


def engine_range(vllm: VllmSection) -> tuple[int, int]:
    """The least and the most engines of `teacher.vllm.num_engines`; equal where it is one number."""
    engines = vllm.num_engines
    return (engines, engines) if isinstance(engines, int) else (engines[0], engines[1])


@dataclass(frozen=True)
class Pool:
    """From `least` to `most` actors; each holds `rows_in_flight` rows, and takes `num_cpus` and `num_gpus` of
    a node with `labels`.

    Ray restarts a dead actor and hands it its shards again, each at most `retries` times (-1: always).
    """

    least: int
    most: int
    rows_in_flight: float
    retries: int
    num_cpus: int = 1
    num_gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)

    def iter_records(self, worker: type, shards: Sequence[Shard], **arguments: Any) -> Iterator[pa.Table]:
        """What `worker(**arguments)` yields for the shards, as it comes. Ray must be running."""
        import ray.data

        concurrent = math.ceil(self.rows_in_flight / max(shard.num_rows for shard in shards)) + _SPARE_SHARDS
        placed = {"label_selector": dict(self.labels)} if self.labels else {}
        dataset = ray.data.from_items(shards_to_table(shards), override_num_blocks=len(shards))
        # max_task_retries has no named parameter in this Ray.
        warnings.filterwarnings("ignore", message=r"`ray_remote_args", category=DeprecationWarning)
        results = dataset.map_batches(
            worker,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(self.least, len(shards)),
                max_size=min(self.most, len(shards)),
                max_concurrent_calls_per_actor=concurrent,
                max_tasks_in_flight_per_actor=concurrent + 1,
                enable_true_multi_threading=True,
            ),
            fn_constructor_kwargs=arguments,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            ray_remote_args_fn=lambda: {"max_task_retries": self.retries} | placed,
        )
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

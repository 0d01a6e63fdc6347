"""The driver's side: shards through a Ray Data actor pool, progress as it comes, errors as raised."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raystill.errors import EnvironmentFault
from raystill.run.events import EventLog
from raystill.run.ray_data import original_errors, ray_data_settings
from raystill.teacher.build_engine import EngineBlueprint, expected_rows_in_flight
from raystill.teacher.pool import engine_range
from raystill.teacher.row_order import mark_tail
from raystill.teacher.row_work import WorkOrder
from raystill.teacher.shards import Shard, shards_to_table

if TYPE_CHECKING:
    import pyarrow as pa

_EVENT_SECONDS = 2.0
# Ray restarts a dead actor and hands it its shards again, as often as the notes of its deaths allow.
_UNLIMITED = -1
# Shards beyond those that fill the engine: one whose rows wait, one whose last rows trickle out.
_SPARE_SHARDS = 2


@dataclass
class Progress:
    """Rows and completion tokens done by this process; `total` is what it set out to do.

    The tail begins when fewer than `capacity` rows are left, which is what all engines hold together.
    """

    total: int
    capacity: int = 0
    done: int = 0
    rejected: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tail_started: float | None = None

    def add(self, records: pa.Table) -> None:
        """Add what workers report."""
        for name in ("done", "rejected", "tokens"):
            setattr(self, name, getattr(self, name) + sum(records.column(name).to_pylist()))
        if self.tail_started is None and self.total - self.done - self.rejected < self.capacity:
            self.tail_started = self.seconds

    @property
    def tail_fraction(self) -> float:
        """Share of the time in which fewer rows were left than the engines could hold."""
        if self.seconds <= 0 or self.tail_started is None:
            return 0.0
        return (self.seconds - self.tail_started) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens per second since the first engine was up."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def run_shards(
    shards: Sequence[Shard], blueprint: EngineBlueprint, order: WorkOrder, events: EventLog
) -> Progress:
    """Do all shards on `teacher.vllm.num_engines` engines. Ray must be running.

    A range of engines is an autoscaling pool: one more starts while all have their hands full, and each ends
    when nothing is left for it. Emits `progress` events: done, total, unit, tokens_per_s, rejected,
    eta_seconds. Raises the RaystillError that a worker raised, among them EnvironmentFault where an engine
    dies again and again.
    """
    engines = _num_engines(blueprint, shards)
    capacity = engines[1] * expected_rows_in_flight(blueprint) if shards else 0
    progress = Progress(total=sum(shard.num_rows for shard in shards), capacity=capacity)
    if not shards:
        return progress
    events.emit("engine_starting", engine=blueprint.facts.engine, engines=_shown_range(engines))
    with ray_data_settings(streams_records=True), original_errors(_died(blueprint)):
        started: float | None = None
        next_event = 0.0
        for records in _iter_records(mark_tail(shards, capacity), blueprint, order):
            now = time.monotonic()
            # The first record says only that an engine is up.
            started = started or now
            progress.seconds = now - started
            progress.add(records)
            if now >= next_event:
                _emit(events, progress)
                next_event = now + _EVENT_SECONDS
    _emit(events, progress)
    return progress


def _iter_records(
    shards: Sequence[Shard], blueprint: EngineBlueprint, order: WorkOrder
) -> Iterator[pa.Table]:
    import ray.data

    from raystill.teacher.shard_worker import ShardWorker

    concurrent = (
        math.ceil(expected_rows_in_flight(blueprint) / max(shard.num_rows for shard in shards))
        + _SPARE_SHARDS
    )
    least, most = _num_engines(blueprint, shards)
    on_gpu = blueprint.facts.device == "cuda"
    dataset = ray.data.from_items(shards_to_table(shards), override_num_blocks=len(shards))
    warnings.filterwarnings("ignore", message=r"`ray_remote_args", category=DeprecationWarning)
    results = dataset.map_batches(
        ShardWorker,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(
            min_size=least,
            max_size=most,
            max_concurrent_calls_per_actor=concurrent,
            max_tasks_in_flight_per_actor=concurrent + 1,
            enable_true_multi_threading=True,
        ),
        fn_constructor_kwargs={"blueprint": blueprint, "order": order},
        num_cpus=0 if on_gpu else 1,
        num_gpus=blueprint.config.teacher.vllm.tensor_parallel_size if on_gpu else 0,
        ray_remote_args_fn=lambda: {"max_task_retries": _UNLIMITED},
    )
    yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _num_engines(blueprint: EngineBlueprint, shards: Sequence[Shard]) -> tuple[int, int]:
    least, most = engine_range(blueprint.config.teacher.vllm)
    return min(least, len(shards)), min(most, len(shards))


def _shown_range(engines: tuple[int, int]) -> int | str:
    return engines[0] if engines[0] == engines[1] else f"{engines[0]} to {engines[1]}"


def _emit(events: EventLog, progress: Progress) -> None:
    finished = progress.done + progress.rejected
    left = progress.total - finished
    rate = finished / progress.seconds if progress.seconds > 0 else 0.0
    events.emit(
        "progress",
        done=min(finished, progress.total),
        total=progress.total,
        unit="rows",
        tokens_per_s=round(progress.tokens_per_s, 1),
        rejected=progress.rejected,
        eta_seconds=round(left / rate, 1) if rate and left > 0 else None,
    )


def _died(blueprint: EngineBlueprint) -> EnvironmentFault:
    return EnvironmentFault(
        "a teacher's worker is gone, and Ray could not start it again; what it had committed is kept",
        where=f"engine {blueprint.facts.engine}",
        fix="look for out-of-memory kills, and into logs/ray of the run (what the workers printed); "
        "lower teacher.vllm.max_num_seqs or kv_cache_gib, then run again: only missing rows are made",
    )

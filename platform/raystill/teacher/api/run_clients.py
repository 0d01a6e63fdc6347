"""The driver's side: shards to the workers that send requests, their progress and cost, their errors."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raystill.errors import EnvironmentFault, RaystillError
from raystill.run.events import EventLog
from raystill.run.ray_data import original_errors, ray_data_settings
from raystill.store.store import TeacherStore
from raystill.teacher.api.client_worker import ClientBlueprint, ClientWorker
from raystill.teacher.api.engine import rows_in_flight
from raystill.teacher.api.error_record import first_error
from raystill.teacher.api.identify import ENGINE_NAME
from raystill.teacher.row_work import GenerateWork
from raystill.teacher.shards import Shard, shards_to_table

if TYPE_CHECKING:
    import pyarrow as pa

_EVENT_SECONDS = 2.0
_RESTARTS = 2
# Shards beyond those that fill a worker: one whose rows wait, one whose last rows trickle out.
_SPARE_SHARDS = 2


@dataclass
class ClientProgress:
    """What this process has done so far. `cost_usd` is this run's, `at_risk_usd` may be billed besides."""

    total: int
    done: int = 0
    rejected: int = 0
    tokens: int = 0
    requests: int = 0
    retries: int = 0
    cost_usd: float = 0.0
    at_risk_usd: float = 0.0
    seconds: float = 0.0

    def add(self, records: pa.Table) -> None:
        """Add what workers report."""
        for name in ("done", "rejected", "tokens", "requests", "retries", "cost_usd", "at_risk_usd"):
            setattr(self, name, getattr(self, name) + sum(records.column(name).to_pylist()))

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens per second since the first worker was up."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def run_clients(
    shards: Sequence[Shard],
    blueprint: ClientBlueprint,
    store: TeacherStore,
    work: GenerateWork,
    events: EventLog,
) -> ClientProgress:
    """Ask for all rows of `shards` on `blueprint.num_clients` workers. Ray must be running.

    Emits `progress` events: done, total, unit, tokens_per_s, rejected, requests, retries, cost_usd,
    at_risk_usd, eta_seconds. Raises the RaystillError that stopped the run, after every worker has stored
    what it had in flight.
    """
    progress = ClientProgress(total=sum(shard.num_rows for shard in shards))
    if not shards:
        return progress
    events.emit("engine_starting", engine=ENGINE_NAME, engines=blueprint.num_clients)
    stop: RaystillError | None = None
    with ray_data_settings(streams_records=True), original_errors(_died(blueprint)):
        started: float | None = None
        next_event = 0.0
        for records in _iter_records(shards, blueprint, store, work):
            now = time.monotonic()
            started = started or now
            progress.add(records)
            progress.seconds = now - started
            stop = stop or first_error(records)
            if now >= next_event:
                _emit(events, progress)
                next_event = now + _EVENT_SECONDS
    _emit(events, progress)
    if stop is not None:
        raise stop
    return progress


def _iter_records(
    shards: Sequence[Shard], blueprint: ClientBlueprint, store: TeacherStore, work: GenerateWork
) -> Iterator[pa.Table]:
    import ray.data

    rows = rows_in_flight(blueprint.settings.max_in_flight) / blueprint.num_clients
    concurrent = math.ceil(rows / max(shard.num_rows for shard in shards)) + _SPARE_SHARDS
    dataset = ray.data.from_items(shards_to_table(shards), override_num_blocks=len(shards))
    # max_task_retries has no named parameter in this Ray.
    warnings.filterwarnings("ignore", message=r"`ray_remote_args", category=DeprecationWarning)
    results = dataset.map_batches(
        ClientWorker,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(
            size=min(blueprint.num_clients, len(shards)),
            max_concurrent_calls_per_actor=concurrent,
            max_tasks_in_flight_per_actor=concurrent + 1,
            enable_true_multi_threading=True,
        ),
        fn_constructor_kwargs={"blueprint": blueprint, "store": store, "work": work},
        num_cpus=1,
        # Ray restarts a dead worker; a shard that has seen so many of them die fails the run.
        ray_remote_args_fn=lambda: {"max_task_retries": _RESTARTS},
    )
    yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _died(blueprint: ClientBlueprint) -> EnvironmentFault:
    return EnvironmentFault(
        f"a worker that sends requests died {_RESTARTS + 1} times; every answer that it had stored is kept",
        where=blueprint.settings.where,
        fix="look for out-of-memory kills, and into logs/ray of the run; then run again: only missing rows "
        "are asked",
    )


def _emit(events: EventLog, progress: ClientProgress) -> None:
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
        requests=progress.requests,
        retries=progress.retries,
        cost_usd=round(progress.cost_usd, 6),
        at_risk_usd=round(progress.at_risk_usd, 6),
        eta_seconds=round(left / rate, 1) if rate and left > 0 else None,
    )

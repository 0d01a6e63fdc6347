"""The driver's side of an endpoint: shards to the workers that send requests, and what stops them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raystill.errors import EnvironmentFault, RaystillError
from raystill.run.events import EventLog
from raystill.run.ray_data import original_errors, ray_data_settings
from raystill.store.store import TeacherStore
from raystill.teacher.api.client_worker import ClientBlueprint, ClientWorker
from raystill.teacher.api.engine import rows_in_flight
from raystill.teacher.api.error_record import first_error
from raystill.teacher.api.identify import ENGINE_NAME
from raystill.teacher.drain import Drain, drained_on_signals
from raystill.teacher.pool import Pool
from raystill.teacher.progress import Progress, follow
from raystill.teacher.row_work import GenerateWork
from raystill.teacher.shards import Shard

# A shard that has seen so many workers die fails the run.
_RESTARTS = 2
_AMOUNTS = ("requests", "retries", "in_flight", "http_429", "http_5xx", "cost_usd", "at_risk_usd")


def run_clients(
    shards: Sequence[Shard],
    blueprint: ClientBlueprint,
    store: TeacherStore,
    work: GenerateWork,
    events: EventLog,
) -> Progress:
    """Ask for all rows of `shards` on `blueprint.num_clients` workers. Ray must be running.

    Emits `progress` events with requests, retries, in_flight, http_429, http_5xx, cost_usd (this run's) and
    at_risk_usd (may be billed besides). Raises the RaystillError that stopped the run, after every worker
    has stored what it had in flight. The first SIGINT or SIGTERM sends no more requests and gives those in
    flight a few seconds.
    """
    progress = Progress(sum(shard.num_rows for shard in shards), amounts=dict.fromkeys(_AMOUNTS, 0))
    if not shards:
        return progress
    clients = blueprint.num_clients
    pool = Pool(
        least=clients,
        most=clients,
        rows_in_flight=rows_in_flight(blueprint.settings.max_in_flight) / clients,
        retries=_RESTARTS,
    )
    events.emit("engine_starting", engine=ENGINE_NAME, engines=clients)
    stop: RaystillError | None = None
    drain = Drain(Path(shards[0].path).with_name("drain"))
    with (
        drained_on_signals(drain),
        ray_data_settings(streams_records=True),
        original_errors(_died(blueprint)),
    ):
        records = pool.iter_records(
            ClientWorker, shards, blueprint=blueprint, store=store, work=work, drain=drain
        )
        for record in follow(records, progress, events):
            stop = stop or first_error(record)
    if stop is not None:
        raise stop
    return progress


def _died(blueprint: ClientBlueprint) -> EnvironmentFault:
    return EnvironmentFault(
        f"a worker that sends requests died {_RESTARTS + 1} times; every answer that it had stored is kept",
        where=blueprint.settings.where,
        fix="look for out-of-memory kills, and into logs/ray of the run; then run again: only missing rows "
        "are asked",
    )

"""The driver's side of engines that hold the model: shards through a pool of them, errors as raised."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from raystill.config.node_labels import node_labels
from raystill.errors import EnvironmentFault
from raystill.run.events import EventLog
from raystill.run.ray_data import original_errors, ray_data_settings
from raystill.teacher.build_engine import EngineBlueprint, expected_rows_in_flight
from raystill.teacher.drain import Drain, drained_on_signals
from raystill.teacher.pool import Pool, engine_range
from raystill.teacher.progress import Progress, follow
from raystill.teacher.row_order import mark_tail
from raystill.teacher.row_work import WorkOrder, drain_directory
from raystill.teacher.shards import Shard

# As often as the notes of an engine's deaths allow.
_UNLIMITED = -1


def run_shards(
    shards: Sequence[Shard], blueprint: EngineBlueprint, order: WorkOrder, events: EventLog
) -> Progress:
    """Do all shards on `teacher.vllm.num_engines` engines. Ray must be running.

    A range of engines is an autoscaling pool: one more starts while all have their hands full, and each ends
    when nothing is left for it. Emits `progress` events. Raises the RaystillError that a worker raised, among
    them EnvironmentFault where an engine dies again and again.
    """
    total = sum(shard.num_rows for shard in shards)
    if not shards:
        return Progress(total)
    from raystill.teacher.shard_worker import ShardWorker

    on_gpu = blueprint.facts.device == "cuda"
    least, most = engine_range(blueprint.config.teacher.vllm)
    pool = Pool(
        least=least,
        most=most,
        rows_in_flight=expected_rows_in_flight(blueprint),
        retries=_UNLIMITED,
        num_cpus=0 if on_gpu else 1,
        num_gpus=blueprint.config.teacher.vllm.tensor_parallel_size if on_gpu else 0,
        labels=node_labels(blueprint.config, "generate"),
    )
    least, most = min(least, len(shards)), min(most, len(shards))
    progress = Progress(total, capacity=most * expected_rows_in_flight(blueprint))
    engines = most if least == most else f"{least} to {most}"
    events.emit("engine_starting", engine=blueprint.facts.engine, engines=engines)
    marked = mark_tail(shards, progress.capacity)
    with (
        drained_on_signals(Drain(drain_directory(order))),
        ray_data_settings(streams_records=True),
        original_errors(_died(blueprint)),
    ):
        records = pool.iter_records(ShardWorker, marked, blueprint=blueprint, order=order)
        deque(follow(records, progress, events), maxlen=0)
    return progress


def _died(blueprint: EngineBlueprint) -> EnvironmentFault:
    return EnvironmentFault(
        "a teacher's worker is gone, and Ray could not start it again; what it had committed is kept",
        where=f"engine {blueprint.facts.engine}",
        fix="look for out-of-memory kills, and into logs/ray of the run (what the workers printed); "
        "lower teacher.vllm.max_num_seqs or kv_cache_gib, then run again: only missing rows are made",
    )

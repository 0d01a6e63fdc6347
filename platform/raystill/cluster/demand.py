"""What a stage asks a cluster for, and whether the cluster can ever have it.

Ray waits for resources without an end. What neither the nodes that are there nor those that an autoscaler
may add can give is refused before the stage begins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raystill.config.node_labels import is_cluster_joined, node_labels
from raystill.config.schema import Config
from raystill.config.signal_source import teacher_resources
from raystill.config.worker_range import worker_range
from raystill.errors import EnvironmentFault, Problem
from raystill.run.paths import StageName

_ANSWER_SECONDS, _POLL_SECONDS, _RPC_SECONDS = 20.0, 0.5, 10
_SMALLEST_NUM_CPUS = 4  # what a local Ray offers at least (`ray_session`)


@dataclass(frozen=True)
class Demand:
    """From `least` to `most` workers of a stage, each with `each` of Ray's resources, on one node; and
    `beside` each a process of its own, on any node. Nodes of workers have `labels`."""

    stage: StageName
    what: str
    least: int
    most: int
    each: dict[str, float]
    key: str
    beside: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """`1 to 4 engines, each 1 GPU`."""
        count = f"{self.most}" if self.least == self.most else f"{self.least} to {self.most}"
        words = ", ".join(f"{amount:g} {name}" for name, amount in self.each.items())
        more = " and ".join(f"{amount:g} {name}" for name, amount in self.beside.items())
        words += f", and {more} for its teachers" if more else ""
        labels = ", ".join(f"{name}: {value}" for name, value in self.labels.items())
        words += f", on nodes with {labels}" if labels else ""
        return f"{count} {self.what}{'s' if self.most > 1 else ''}, each {words}"


@dataclass(frozen=True)
class Capacity:
    """What a cluster has: in all, and on each node; `can_grow` where an autoscaler may add to it."""

    total: Mapping[str, float]
    nodes: Sequence[Mapping[str, float]] = field(default_factory=list)
    can_grow: bool = False


def stage_demand(config: Config, stage: StageName, device: str) -> Demand | None:
    """What a stage asks for on `device` ("cpu" or "cuda"); None for one that takes no worker of its own."""
    gpu = device == "cuda"
    if stage in ("generate", "score", "grade"):
        section, vllm = "teacher", config.teacher.vllm
        if stage == "generate" and (config.teacher.closed is not None or config.teacher.base.from_store):
            return None
        if stage == "grade":
            if config.grade is None or config.grade.open is None:
                return None
            section, vllm = "grade", config.grade.vllm
        engines = vllm.num_engines
        least, most = (engines, engines) if isinstance(engines, int) else (engines[0], engines[1])
        each = {"GPU": float(vllm.tensor_parallel_size)} if gpu else {"CPU": 1.0}
        labels = node_labels(config, stage)
        return Demand(stage, "engine", least, most, each, f"{section}.vllm.num_engines", labels=labels)
    if stage in ("sft", "distill"):
        least, most = worker_range(config.training)
        each = {"CPU": float(config.training.cpus_per_worker or 1)} | ({"GPU": 1.0} if gpu else {})
        beside = teacher_resources(config, on_gpu=gpu) if stage == "distill" else {}
        labels = node_labels(config, stage)
        return Demand(stage, "training worker", least, most, each, "training.num_workers", beside, labels)
    if stage in ("evaluate", "export") and is_cluster_joined(config):
        each = {"CPU": float(config.training.cpus_per_worker or 1)} | ({"GPU": 1.0} if gpu else {})
        labels = node_labels(config, stage)
        return Demand(stage, "process", 1, 1, each, "training.cpus_per_worker", labels=labels)
    return None


def find_unmet(demand: Demand, capacity: Capacity) -> Problem | None:
    """Why `demand` can never be met by `capacity`, that of nodes with its labels, if it can't."""
    beside = {} if demand.labels else demand.beside  # other nodes may have room for those
    for name in {**demand.each, **beside}:
        amount = demand.each.get(name, 0.0) + beside.get(name, 0.0)
        total = capacity.total.get(name, 0.0)
        if demand.least * amount > total + 1e-6:
            return Problem(
                f"{demand.stage} asks for {demand.describe()}: {demand.least * amount:g} {name}, and Ray "
                f"has {total:g} {name}",
                demand.key,
                "lower it, or let the cluster have more nodes (max_workers)",
            )
    fitting = [
        node
        for node in capacity.nodes
        if all(node.get(name, 0.0) >= amount for name, amount in demand.each.items())
    ]
    if capacity.nodes and not fitting:
        words = " and ".join(f"{amount:g} {name}" for name, amount in demand.each.items())
        return Problem(
            f"{demand.stage} asks for workers of {words} each, and no node has that much",
            demand.key,
            "ask for less per worker, or add a larger kind of node",
        )
    return None


def require_capacity(config: Config, stage: StageName) -> Demand | None:
    """Refuse a stage that would wait forever. Ray must be running. Raises EnvironmentFault.

    What the nodes that are there can't give is asked of the autoscaler, where there is one: it starts nodes,
    or says that none which it may add could ever fit. Returns what the stage asks for.
    """
    gpus = load_capacity().total.get("GPU", 0.0)
    on_gpu = config.device.type == "cuda" or (config.device.type == "auto" and gpus > 0)
    demand = stage_demand(config, stage, "cuda" if on_gpu else "cpu")
    capacity = load_capacity({} if demand is None else demand.labels)
    problem = None if demand is None else find_unmet(demand, capacity)
    if demand is None or problem is None or _has_old_autoscaler():
        return demand
    if capacity.can_grow:
        problem = ask_autoscaler(demand, _ANSWER_SECONDS)
    if problem is not None:
        raise EnvironmentFault(problem.what, problem.where, problem.fix)
    return demand


def load_capacity(labels: Mapping[str, str] | None = None) -> Capacity:
    """What the nodes of the running Ray have, those with `labels`, and whether an autoscaler may add some."""
    return replace(node_capacity(labels or {}), can_grow=_autoscaling_state() is not None)


def node_capacity(labels: Mapping[str, str]) -> Capacity:
    """What the nodes with `labels` have that are there now."""
    import ray

    wanted = labels.items()
    alive = [node for node in ray.nodes() if node["Alive"] and wanted <= (node["Labels"] or {}).items()]
    nodes = [dict(node["Resources"]) for node in alive]
    total = {name: sum(node.get(name, 0.0) for node in nodes) for node in nodes for name in node}
    return Capacity(total, nodes)


def ask_autoscaler(demand: Demand, seconds: float) -> Problem | None:
    """Ask for the least that a stage needs; why it can never be had, or None: it is there, or on its way.

    An autoscaler that says nothing within `seconds` is not waited for longer.
    """
    from ray.autoscaler.sdk import request_resources

    beside = demand.least if demand.beside else 0
    request_resources(
        bundles=[*[demand.each] * demand.least, *[demand.beside] * beside],
        bundle_label_selectors=[*[demand.labels] * demand.least, *[{}] * beside],
    )
    try:
        deadline = time.monotonic() + seconds
        # What it said before it saw this request is about an earlier one.
        asked = _cluster_status().cluster_resource_state.cluster_resource_state_version
        while time.monotonic() < deadline:
            state = _autoscaling_state()
            if state is not None and state.last_seen_cluster_resource_state_version < asked:
                time.sleep(_POLL_SECONDS)
                continue
            if state is not None and state.infeasible_cluster_resource_constraints:
                return Problem(
                    f"{demand.stage} asks for {demand.describe()}, and the autoscaler may add no nodes that "
                    "would give it",
                    demand.key,
                    "lower it, or raise max_workers or the size of nodes in the cluster's file",
                )
            if state is not None and (state.pending_instance_requests or state.pending_instances):
                return None
            if find_unmet(demand, node_capacity(demand.labels)) is None:
                return None
            time.sleep(_POLL_SECONDS)
        return None
    finally:
        request_resources(bundles=[])


def _has_old_autoscaler() -> bool:
    """Whether version 1 of Ray's autoscaler runs: it can't be asked, so Ray decides."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get(DEBUG_AUTOSCALING_STATUS) is not None and _autoscaling_state() is None


def _autoscaling_state() -> Any:
    """What the autoscaler (v2) last said, or None where there is none."""
    reply = _cluster_status()
    return reply.autoscaling_state if reply.HasField("autoscaling_state") else None


def _cluster_status() -> Any:
    """The cluster's state, with a version that grows whenever it is looked at, and its autoscaler's words."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    client = GcsClient(ray.get_runtime_context().gcs_address)
    reply.ParseFromString(client.get_cluster_status(timeout_s=_RPC_SECONDS))
    return reply


def local_capacity(config: Config) -> Capacity | None:
    """What a Ray on this machine will have of CPUs; None where a cluster is to be joined."""
    if is_cluster_joined(config):
        return None
    cpus = config.cluster.num_cpus or max(os.cpu_count() or 1, _SMALLEST_NUM_CPUS)
    return Capacity({"CPU": float(cpus), "GPU": float("inf")}, [{"CPU": float(cpus), "GPU": float("inf")}])

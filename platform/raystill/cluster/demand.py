"""What a stage asks a cluster for, and whether the cluster can ever have it.

Ray waits for resources without an end. What neither the nodes that are there nor those that an autoscaler
may add can give is refused before the stage begins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raystill.config.schema import Config
from raystill.errors import EnvironmentFault, Problem
from raystill.run.paths import StageName

_SMALLEST_NUM_CPUS = 4  # what a local Ray offers at least (`ray_session`)


@dataclass(frozen=True)
class Demand:
    """From `least` to `most` workers of a stage, each with `each` of Ray's resources, on one node."""

    stage: StageName
    what: str
    least: int
    most: int
    each: dict[str, float]
    key: str

    def describe(self) -> str:
        """`1 to 4 engines, each 1 GPU`."""
        count = f"{self.most}" if self.least == self.most else f"{self.least} to {self.most}"
        words = ", ".join(f"{amount:g} {name}" for name, amount in self.each.items())
        return f"{count} {self.what}{'s' if self.most > 1 else ''}, each {words}"


@dataclass(frozen=True)
class Capacity:
    """What a cluster can have at most: in all, and on one node of each kind."""

    total: Mapping[str, float]
    nodes: Sequence[Mapping[str, float]] = field(default_factory=list)
    can_grow: bool = False


def stage_demand(config: Config, stage: StageName, device: str) -> Demand | None:
    """What a stage asks for on `device` ("cpu" or "cuda"); None for one that takes no worker of its own."""
    gpu = device == "cuda"
    if stage in ("generate", "score"):
        if stage == "generate" and (config.teacher.closed is not None or config.teacher.base.from_store):
            return None
        engines = config.teacher.vllm.num_engines
        least, most = (engines, engines) if isinstance(engines, int) else (engines[0], engines[1])
        each = {"GPU": float(config.teacher.vllm.tensor_parallel_size)} if gpu else {"CPU": 1.0}
        return Demand(stage, "engine", least, most, each, "teacher.vllm.num_engines")
    if stage in ("sft", "distill"):
        workers = config.training.num_workers
        each = {"CPU": float(config.training.cpus_per_worker or 1)} | ({"GPU": 1.0} if gpu else {})
        return Demand(stage, "training worker", workers, workers, each, "training.num_workers")
    return None


def find_unmet(demand: Demand, capacity: Capacity) -> Problem | None:
    """Why `demand` can never be met, if it can't."""
    grown = "can have" if capacity.can_grow else "has"
    for name, amount in demand.each.items():
        total = capacity.total.get(name, 0.0)
        if demand.least * amount > total + 1e-6:
            return Problem(
                f"{demand.stage} asks for {demand.describe()}: {demand.least * amount:g} {name}, and Ray "
                f"{grown} at most {total:g} {name}",
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
            f"{demand.stage} asks for workers of {words} each, and no node {grown} that much",
            demand.key,
            "ask for less per worker, or add a larger kind of node",
        )
    return None


def require_capacity(config: Config, stage: StageName) -> None:
    """Refuse a stage that would wait forever. Ray must be running. Raises EnvironmentFault."""
    capacity = load_capacity()
    on_gpu = config.device.type != "cpu" and capacity.total.get("GPU", 0.0) > 0
    demand = stage_demand(config, stage, "cuda" if on_gpu else "cpu")
    problem = None if demand is None else find_unmet(demand, capacity)
    if problem is not None:
        raise EnvironmentFault(problem.what, problem.where, problem.fix)


def load_capacity() -> Capacity:
    """What the running Ray has, and what its autoscaler may add."""
    import ray
    from ray._private.state import state

    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    total = dict(ray.cluster_resources())
    config = state.get_cluster_config()
    groups = list(config.node_group_configs) if config is not None else []
    for name, amount in (state.get_max_resources_from_cluster_config() or {}).items():
        total[name] = max(total.get(name, 0.0), float(amount))
    growing = [dict(group.resources) for group in groups if group.max_count]
    return Capacity(total, [*nodes, *growing], can_grow=bool(growing))


def local_capacity(config: Config) -> Capacity | None:
    """What a Ray on this machine will have of CPUs; None where a cluster is to be joined."""
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        return None
    cpus = config.cluster.num_cpus or max(os.cpu_count() or 1, _SMALLEST_NUM_CPUS)
    return Capacity({"CPU": float(cpus), "GPU": float("inf")}, [{"CPU": float(cpus), "GPU": float("inf")}])

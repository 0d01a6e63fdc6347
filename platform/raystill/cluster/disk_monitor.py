"""The watch over every filesystem that a run uses, on every node: readings as metrics, low ones as warnings.

On its own machine a thread of the driver looks; on every other node that works, whenever it came, a light
actor does (no CPU is reserved), and the driver asks them. Whether something may be written is asked where it
is written, of `run.disk`, which looks at the same filesystems at that moment; training stops by itself where
its disk runs out (`train.stopping`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystill.config.schema import Config
from raystill.run.disk import FilesystemReading, read_filesystems
from raystill.run.events import EventLog
from raystill.run.paths import RunPaths
from raystill.run.remote import is_remote

OnEvent = Callable[[dict[str, Any]], None]
_GIB = 2**30
# A small filesystem, such as a container's /dev/shm, is low when a share of it is left.
_LOW_SHARE = 0.05
_LOW_MULTIPLE = 2.0
# A warning is forgotten once this multiple of its limit is free again.
_RECOVERED = 1.2
_ANSWER_SECONDS = 30.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


def places_in_use(paths: RunPaths, ray_directory: Path | None) -> dict[str, Path]:
    """What a run writes to, by use. `ray_directory` is a node's Ray session, where objects are spilled."""
    places = {"run": paths.root.absolute()}
    if not is_remote(paths.store):
        places["store"] = paths.store.absolute()
    if ray_directory is not None:
        places["ray"] = ray_directory
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or "~/.cache/huggingface"
    places["hub cache"] = Path(cache).expanduser()
    if _SHARED_MEMORY.is_dir():
        places["shared memory"] = _SHARED_MEMORY
    return places


def low_limit_bytes(reading: FilesystemReading, hard_free_gb: float) -> int:
    """Below this much free space a filesystem is called low."""
    return int(min(_LOW_MULTIPLE * hard_free_gb * _GIB, _LOW_SHARE * reading.total_bytes))


class LowDisks:
    """Which filesystems are low, with hysteresis: each is told once until it has recovered."""

    def __init__(self, hard_free_gb: float) -> None:
        self._hard_free_gb = hard_free_gb
        self._low: set[tuple[str, ...]] = set()

    def take(self, node: str, readings: list[FilesystemReading]) -> list[str]:
        """What has become low on `node`, as messages."""
        messages = []
        for reading in readings:
            limit, key = low_limit_bytes(reading, self._hard_free_gb), (node, *reading.uses)
            if reading.free_bytes >= limit * _RECOVERED:
                self._low.discard(key)
            elif reading.free_bytes < limit and key not in self._low:
                self._low.add(key)
                messages.append(
                    f"{reading.free_gb:.2f} GiB are free on {node} for {', '.join(reading.uses)} "
                    f"({reading.path}); training stops below {self._hard_free_gb:g} GiB on its own disk"
                )
        return messages


class DiskGauges:
    """The readings of one process as metrics of Ray's, tagged with node and uses."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        tags = ("node", "uses")
        self._free = Gauge("raystill_disk_free_bytes", "Free bytes of a filesystem in use.", tag_keys=tags)
        self._total = Gauge("raystill_disk_total_bytes", "Size of a filesystem in use.", tag_keys=tags)

    def set(self, node: str, readings: list[FilesystemReading]) -> None:
        """Publish `readings`."""
        for reading in readings:
            tags = {"node": node, "uses": ",".join(reading.uses)}
            self._free.set(reading.free_bytes, tags)
            self._total.set(reading.total_bytes, tags)


class DiskProbe:
    """Reads one node's filesystems; runs there, as an actor or in the driver."""

    def __init__(self, node: str, places: Mapping[str, Path]) -> None:
        self._node = node
        self._places = dict(places)
        self._gauges = DiskGauges()

    def read(self) -> list[FilesystemReading]:
        """The filesystems' readings of now; metrics are set as well."""
        readings = read_filesystems(self._places)
        self._gauges.set(self._node, readings)
        return readings


@contextmanager
def watch_disks(config: Config, paths: RunPaths, on_event: OnEvent | None = None) -> Iterator[None]:
    """Watch while the body runs; Ray must be running. Warnings and readings go to the run's log."""
    probes = NodeProbes(paths)
    stop = threading.Event()
    low = LowDisks(config.disk.hard_free_gb)

    def look(events: EventLog, *, log: bool) -> None:
        for node, readings in probes.ask().items():
            for message in low.take(node, readings):
                events.emit("warning", message=message)
            if log:
                free = {",".join(one.uses): round(one.free_gb, 3) for one in readings}
                events.emit("disk", node=node, free_gb=free)

    def run() -> None:
        with EventLog(paths.run_log, "disk", _only_warnings(on_event)) as events:
            look(events, log=True)
            while not stop.wait(config.disk.interval_s):
                look(events, log=False)
            look(events, log=True)

    thread = threading.Thread(target=run, name="raystill-disk", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=_ANSWER_SECONDS)


def _only_warnings(on_event: OnEvent | None) -> OnEvent | None:
    if on_event is None:
        return None

    def show(record: dict[str, Any]) -> None:
        if record["event"] == "warning":
            on_event(record)

    return show


class NodeProbes:
    """Reads the filesystems of the driver's node, and of every other one that works.

    A node whose CPUs and GPUs are free has no actor of ours: with one it would never count as idle, and never
    leave.
    """

    def __init__(self, paths: RunPaths) -> None:
        import ray

        self._paths = paths
        self._here = ray.get_runtime_context().get_node_id()
        self._probes: dict[str, Any] = {}

    def ask(self) -> dict[str, list[FilesystemReading]]:
        """Readings by the nodes' names; a node that doesn't answer in time is left out."""
        import ray

        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        self._place(nodes)
        found = {}
        answers = {}
        for node, probe in self._probes.items():
            if node == self._here:
                found[_name(nodes[node])] = probe.read()
            else:
                answers[probe.read.remote()] = node
        done: list[Any] = []
        if answers:
            done, _ = ray.wait(list(answers), num_returns=len(answers), timeout=_ANSWER_SECONDS)
        for answer in done:
            try:
                found[_name(nodes[answers[answer]])] = ray.get(answer)
            except ray.exceptions.RayError:  # its node is gone; the others go on
                self._probes.pop(answers[answer])
        return found

    def _place(self, nodes: Mapping[str, dict[str, Any]]) -> None:
        """Have a probe on the nodes that work, and on no other."""
        import ray
        from ray._private.state import available_resources_per_node

        free = available_resources_per_node()
        working = {
            name for name in nodes.keys() & free.keys() if is_working(nodes[name]["Resources"], free[name])
        }
        for name in [name for name in self._probes if name not in working | {self._here}]:
            ray.kill(self._probes.pop(name))
        for name in sorted(working | ({self._here} & nodes.keys())):
            if name not in self._probes:
                self._probes[name] = self._start(nodes[name])

    def _start(self, node: dict[str, Any]) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        about = (_name(node), places_in_use(self._paths, _session(node)))
        if node["NodeID"] == self._here:
            return DiskProbe(*about)
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        actor: Any = ray.remote(DiskProbe)
        return actor.options(num_cpus=0, scheduling_strategy=there).remote(*about)


def is_working(total: Mapping[str, float], free: Mapping[str, float]) -> bool:
    """Whether somebody has taken some of a node's CPUs or GPUs."""
    return any(free.get(name, 0.0) < total[name] for name in ("CPU", "GPU") if total.get(name))


def _name(node: dict[str, Any]) -> str:
    return str(node.get("NodeManagerHostname") or node["NodeID"][:8])


def _session(node: dict[str, Any]) -> Path | None:
    """The directory of a node's Ray session: its socket lies two levels below."""
    socket = node.get("ObjectStoreSocketName")
    return Path(socket).parent.parent if socket else None

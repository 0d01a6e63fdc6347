"""The watch over every filesystem that a run uses, on every node: readings as metrics, low ones as warnings.

A thread of the driver looks, on other nodes through a task that reserves nothing. Whether something may be
written is asked where it is written, of `run.disk`, which looks at the same filesystems at that moment;
training stops by itself where its disk runs out (`train.stopping`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
_ANSWER_SECONDS = 10.0
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
        self._free = Gauge("raystill_disk_free_gb", "Free GiB of a filesystem in use.", tag_keys=tags)
        self._total = Gauge("raystill_disk_total_gb", "Size in GiB of a filesystem in use.", tag_keys=tags)

    def set(self, node: str, readings: list[FilesystemReading]) -> None:
        """Publish `readings`."""
        for reading in readings:
            tags = {"node": node, "uses": ",".join(reading.uses)}
            self._free.set(reading.free_gb, tags)
            self._total.set(reading.total_bytes / 2**30, tags)


class NodeReadings:
    """Reads the filesystems of every node of the running Ray, those that join later included.

    This process reads its own node's; on every other one a task does that reserves nothing. Where an
    autoscaler may take nodes away, only those that work are asked: an actor, or a task now and then, would
    count as work and keep an idle node.
    """

    def __init__(self, paths: RunPaths) -> None:
        import ray

        from raystill.cluster.demand import load_capacity

        self._paths = paths
        self._here = ray.get_runtime_context().get_node_id()
        self._can_shrink = load_capacity().can_grow
        self._read: Any = ray.remote(num_cpus=0, max_retries=0)(read_filesystems)
        self._gauges = DiskGauges()
        self._pending: dict[str, Any] = {}

    def read(self) -> dict[tuple[str, str], list[FilesystemReading]]:
        """Readings by (node id, host name). A node that takes long to answer is in one of the next."""
        import ray

        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        found = {}
        for node_id, node in nodes.items():
            places = places_in_use(self._paths, _session(node))
            if node_id == self._here:
                found[node_id] = read_filesystems(places)
            elif node_id not in self._pending and not (self._can_shrink and _is_idle(node)):
                self._pending[node_id] = self._ask(node_id, places)
        found |= self._collect()
        named = {(node_id, _name(nodes[node_id])): found[node_id] for node_id in found if node_id in nodes}
        for (_, name), readings in named.items():
            self._gauges.set(name, readings)
        return named

    def _ask(self, node_id: str, places: dict[str, Path]) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        return self._read.options(scheduling_strategy=there).remote(places)

    def _collect(self) -> dict[str, list[FilesystemReading]]:
        import ray

        found: dict[str, list[FilesystemReading]] = {}
        if not self._pending:
            return found
        answers = list(self._pending.values())
        done, _ = ray.wait(answers, num_returns=len(answers), timeout=_ANSWER_SECONDS)
        for node_id, answer in list(self._pending.items()):
            if answer in done:
                del self._pending[node_id]
                # Its node has gone, or a filesystem there can't be read; the others go on.
                with suppress(ray.exceptions.RayError, OSError):
                    found[node_id] = ray.get(answer)
        return found


@contextmanager
def watch_disks(config: Config, paths: RunPaths, on_event: OnEvent | None = None) -> Iterator[None]:
    """Watch while the body runs; Ray must be running. Warnings and readings go to the run's log."""
    nodes, low = NodeReadings(paths), LowDisks(config.disk.hard_free_gb)
    stop = threading.Event()
    seen: set[str] = set()

    def look(events: EventLog, *, log: bool) -> None:
        for (node_id, name), readings in nodes.read().items():
            for message in low.take(name, readings):
                events.emit("warning", message=message)
            if log or node_id not in seen:
                free = {",".join(one.uses): round(one.free_gb, 3) for one in readings}
                events.emit("disk", node=name, node_id=node_id, free_gb=free)
            seen.add(node_id)

    def run() -> None:
        with EventLog(paths.run_log, "disk", _only_warnings(on_event)) as events:
            guarded = _said_once(look, events)
            guarded(log=True)
            while not stop.wait(config.disk.interval_s):
                guarded(log=False)
            guarded(log=True)

    thread = threading.Thread(target=run, name="raystill-disk", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2 * _ANSWER_SECONDS)


def _said_once(look: Callable[..., None], events: EventLog) -> Callable[..., None]:
    """`look`, which goes on after what can't be read at the moment; the first time it is said."""
    from ray.exceptions import RayError

    told = False

    def guarded(*, log: bool) -> None:
        nonlocal told
        try:
            look(events, log=log)
        except (OSError, RayError) as error:
            if not told:
                events.emit("warning", message=f"the disks can't be watched for now: {error}")
            told = True

    return guarded


def _only_warnings(on_event: OnEvent | None) -> OnEvent | None:
    if on_event is None:
        return None

    def show(record: dict[str, Any]) -> None:
        if record["event"] == "warning":
            on_event(record)

    return show


def _is_idle(node: dict[str, Any]) -> bool:
    """Whether nothing on a node is taken, as Ray last heard."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node().get(node["NodeID"], {})
    return all(free.get(name, 0.0) >= node["Resources"].get(name, 0.0) for name in ("CPU", "GPU"))


def _name(node: dict[str, Any]) -> str:
    return str(node.get("NodeManagerHostname") or node["NodeID"][:8])


def _session(node: dict[str, Any]) -> Path | None:
    """The directory of a node's Ray session: its socket lies two levels below."""
    socket = node.get("ObjectStoreSocketName")
    return Path(socket).parent.parent if socket else None

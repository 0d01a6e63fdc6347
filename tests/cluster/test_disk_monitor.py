"""The watch over filesystems: every use is seen, a low one is told once, and Ray's metrics have it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raystill.cluster.disk_monitor import (
    LowDisks,
    NodeProbes,
    is_working,
    low_limit_bytes,
    places_in_use,
    watch_disks,
)
from raystill.config.schema import Config
from raystill.run.disk import FilesystemReading
from raystill.run.paths import RunPaths

GIB = 2**30


def reading(free_gb: float, total_gb: float = 1000.0) -> FilesystemReading:
    return FilesystemReading(("run", "store"), Path("/data"), int(total_gb * GIB), int(free_gb * GIB))


def test_a_low_disk_is_told_once_until_it_has_recovered() -> None:
    low = LowDisks(hard_free_gb=1.0)
    told = [len(low.take("a", [reading(free)])) for free in (5.0, 1.9, 1.0, 2.1, 1.9, 2.5, 1.9)]
    assert told == [0, 1, 0, 0, 0, 0, 1]
    assert len(low.take("b", [reading(0.5)])) == 1
    (message,) = LowDisks(1.0).take("a", [reading(0.5)])
    assert "0.50 GiB are free on a for run, store" in message


def test_a_small_filesystem_is_low_by_share() -> None:
    assert low_limit_bytes(reading(1.0), 1.0) == 2 * GIB
    assert low_limit_bytes(reading(0.06, total_gb=0.0625), 1.0) == int(0.05 * 0.0625 * GIB)


def test_every_place_that_a_run_writes_to_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/big/hub")
    paths = RunPaths(root=Path("/data/run"), store=Path("/store"))
    places = places_in_use(paths, Path("/tmp/ray/session"))
    assert places["run"] == Path("/data/run") and places["store"] == Path("/store")
    assert places["ray"] == Path("/tmp/ray/session") and places["hub cache"] == Path("/big/hub")
    assert "shared memory" in places or not Path("/dev/shm").is_dir()


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    import ray

    temp_dir = tempfile.mkdtemp(prefix="rd", dir="/tmp")
    ray.init(
        address="local", num_cpus=1, object_store_memory=80_000_000, include_dashboard=False,
        log_to_driver=False, _temp_dir=temp_dir,
    )  # fmt: skip
    yield
    ray.shutdown()
    shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.mark.ray
def test_the_watch_logs_and_warns_while_a_run_goes_on(tmp_path: Path, ray_here: None) -> None:
    config = Config.model_validate({"disk": {"hard_free_gb": 1e6, "interval_s": 0.01}})
    paths = RunPaths(root=tmp_path, store=tmp_path / "store")
    shown: list[dict[str, Any]] = []
    with watch_disks(config, paths, shown.append):
        time.sleep(0.2)
    events = [json.loads(line) for line in paths.run_log.read_text().splitlines()]
    kinds: list[str] = [event["event"] for event in events]
    assert kinds.count("disk") == 2 and kinds[-1] == "disk"
    assert any("run" in uses for event in events if event["event"] == "disk" for uses in event["free_gb"])
    assert {event["event"] for event in shown} <= {"warning"}


def test_a_node_works_while_somebody_has_taken_of_it() -> None:
    node = {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}
    assert is_working(node, node | {"GPU": 0.5}) and is_working(node, {"memory": 1e9})
    assert not is_working(node, node | {"memory": 1.0}) and not is_working({"memory": 1e9}, {})


def test_a_node_has_a_probe_while_it_works_and_none_while_it_could_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's node is read by the driver. Ray is played by what it would say and do."""
    import ray
    import ray._private.state
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head, other, gone = ("a" * 56, "head"), ("b" * 56, "other"), ("c" * 56, "gone")
    nodes = [
        {"NodeID": name, "NodeManagerHostname": host, "Alive": host != "gone", "Resources": resources}
        for (name, host), resources in ((head, {"memory": 1.0}), (other, {"CPU": 1.0}), (gone, {"CPU": 1.0}))
    ]
    free = {head[0]: {}, other[0]: {"CPU": 1.0}}
    killed: list[Any] = []
    read = SimpleNamespace(remote=lambda: "answer")
    actor = SimpleNamespace(read=read)

    def start(num_cpus: int, scheduling_strategy: NodeAffinitySchedulingStrategy) -> Any:
        assert (num_cpus, scheduling_strategy.node_id) == (0, other[0])
        return SimpleNamespace(remote=lambda *about: actor)

    here = SimpleNamespace(get_node_id=lambda: head[0])
    monkeypatch.setattr("raystill.cluster.disk_monitor.DiskGauges", lambda: SimpleNamespace(set=print))
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: free)
    monkeypatch.setattr(ray, "remote", lambda kind: SimpleNamespace(options=start))
    monkeypatch.setattr(ray, "wait", lambda answers, num_returns, timeout: (answers, []))
    monkeypatch.setattr(ray, "get", lambda answer: [reading(1.0)])
    monkeypatch.setattr(ray, "kill", killed.append)
    probes = NodeProbes(RunPaths(root=tmp_path, store=tmp_path / "store"))
    assert probes.ask().keys() == {"head"}
    free[other[0]] = {"CPU": 0.0}
    assert probes.ask()["other"] == [reading(1.0)]
    free[other[0]] = {"CPU": 1.0}
    assert probes.ask().keys() == {"head"} and killed == [actor]

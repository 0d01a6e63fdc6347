"""The watch over filesystems: every use is seen, a low one is told once, and Ray's metrics have it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raystill.cluster import disk_monitor
from raystill.cluster.disk_monitor import (
    DiskGauges,
    LowDisks,
    NodeReadings,
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
def test_the_watch_logs_and_warns_while_a_run_goes_on(
    tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_monitor, "_LOW_SHARE", 2.0)  # whatever is free is little
    config = Config.model_validate({"disk": {"hard_free_gb": 1e6, "interval_s": 0.01}})
    paths = RunPaths(root=tmp_path, store=tmp_path / "store")
    shown: list[dict[str, Any]] = []
    with watch_disks(config, paths, shown.append):
        wait_until(lambda: len(shown) > 0)
    events = [json.loads(line) for line in paths.run_log.read_text().splitlines()]
    kinds: list[str] = [event["event"] for event in events]
    assert kinds.count("disk") == 2 and kinds[-1] == "disk"
    assert any("run" in uses for event in events if event["event"] == "disk" for uses in event["free_gb"])
    assert {event["event"] for event in shown} == {"warning"}


@pytest.mark.ray
def test_what_can_not_be_read_ends_no_watch(
    tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate({"disk": {"interval_s": 0.01}})
    paths = RunPaths(root=tmp_path, store=tmp_path / "store")
    looks: list[int] = []
    read = NodeReadings.read

    def stale(self: NodeReadings) -> Any:
        looks.append(1)
        if len(looks) < 3:
            raise OSError(116, "Stale file handle")
        return read(self)

    monkeypatch.setattr(NodeReadings, "read", stale)
    with watch_disks(config, paths):
        wait_until(lambda: len(looks) > 3)
    events = [json.loads(line) for line in paths.run_log.read_text().splitlines()]
    warned = [event["message"] for event in events if event["event"] == "warning"]
    assert len(warned) == 1 and "Stale file handle" in warned[0]
    assert [event["event"] for event in events].count("disk") == 2


@pytest.mark.ray
def test_another_node_is_read_by_a_task_there(
    tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    exported: set[str] = set()
    monkeypatch.setattr(DiskGauges, "set", lambda self, node, readings: exported.add(node))
    nodes = NodeReadings(RunPaths(root=tmp_path, store=tmp_path / "store"))
    nodes._here = "elsewhere"
    (node,) = ray.nodes()
    found: dict[Any, Any] = {}
    wait_until(lambda: bool(found.update(nodes.read())) or bool(found))
    ((node_id, name),) = found
    assert (node_id, name) == (node["NodeID"], node["NodeManagerHostname"]) and exported == {name}
    assert found[node_id, name][0].uses[:2] == ("run", "store") and found[node_id, name][0].free_bytes > 0
    # One that an autoscaler may take away is asked while it works, and left alone when it idles.
    nodes._can_shrink = True
    wait_until(lambda: nodes.read() == {} and nodes._pending == {})

    @ray.remote(num_cpus=1)
    class Work:
        def ready(self) -> bool:
            return True

    work = Work.remote()  # type: ignore[attr-defined]
    assert ray.get(work.ready.remote())
    wait_until(lambda: bool(nodes.read()))
    ray.kill(work)


@pytest.mark.ray
@pytest.mark.soak
def test_a_node_that_joins_later_is_watched(tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    place = tempfile.mkdtemp(prefix="rj", dir="/tmp")
    small = {"object_store_memory": 80_000_000}
    head = {"num_cpus": 1, "temp_dir": place, "include_dashboard": False, **small}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        nodes = NodeReadings(RunPaths(root=tmp_path, store=tmp_path / "store"))
        assert len(nodes.read()) == 1
        cluster.add_node(num_cpus=1, **small)
        wait_until(lambda: len(nodes.read()) == 2)
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(place, ignore_errors=True)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)

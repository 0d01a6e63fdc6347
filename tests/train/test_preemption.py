"""A real drain of a node, as a cloud's notice becomes one: the step is saved in time, and the rest go on."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from raystill.checkpoint.store import latest_valid
from raystill.errors import PreemptionFault
from raystill.train import launch
from raystill.train.launch import run_training

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.timeout(900)]
DEADLINE_SECONDS = 30


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that trains nothing, and two nodes of one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    place = tempfile.mkdtemp(prefix="rp", dir="/tmp")
    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": place, **small})
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=80_000_000)
    ray.init(address=found.address, log_to_driver=False)
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    ray.shutdown()
    found.shutdown()
    shutil.rmtree(place, ignore_errors=True)


def drain_one_node() -> float:
    """Tell Ray that a node with CPUs goes away; returns the time by which it must be left."""
    import ray
    from ray._private.worker import global_worker
    from ray.core.generated import autoscaler_pb2

    node = next(one for one in ray.nodes() if one["Alive"] and one["Resources"].get("CPU"))
    deadline = time.time() + DEADLINE_SECONDS
    accepted, why = global_worker.gcs_client.drain_node(
        node["NodeID"],
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "spot",
        int(deadline * 1000),
    )
    assert accepted, why
    return deadline


@pytest.mark.parametrize("num_workers", [[1, 2], 2])
def test_the_step_is_saved_before_the_deadline_and_a_range_goes_on(
    world: Any, cluster: Any, num_workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F28."""
    steps = {"steps": 600, "save_every": 1000, "log_every": 5}
    alone = world.config("alone", training=steps)
    world.train(alone)
    rows = {"per_device_train_batch_size": 4}
    training = {**steps, "num_workers": num_workers, "cpus_per_worker": 1}
    config = world.config("drained", training=training, train={"distillation": rows})
    paths = world.paths(config)
    world.list_requests(paths)
    deadlines: list[float] = []

    def drain_once(record: dict[str, Any]) -> None:
        if record["step"] > 20 and not deadlines:
            deadlines.append(drain_one_node())

    # Nothing takes the node's place: two workers are waited for in vain, and not for ten minutes here.
    monkeypatch.setattr(launch, "_RESTART_TRIES", 1)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    if num_workers == 2:
        with pytest.raises(PreemptionFault, match="a machine is about to be taken away"):
            run_training(config, paths, "distill", drain_once)
    else:
        run_training(config, paths, "distill", drain_once)
    log = [json.loads(line) for line in paths.run_log.read_text(encoding="utf-8").splitlines()]
    (left,) = [line["message"] for line in log if line["event"] == "warning"]
    stopped = re.search(r"stopped after step (\d+), which is saved", left)
    assert stopped
    step = int(stopped[1])
    (saved,) = [line for line in log if line["event"] == "checkpoint_saved" and line["step"] == step]
    assert saved["time"] < deadlines[0]
    if num_workers == 2:
        assert latest_valid(paths.checkpoints("distill")).step == step
        return
    assert f"going on from step {step}" in left
    ours, theirs = (
        {line["step"]: line["train/loss"] for line in world.metrics(one) if "train/loss" in line}
        for one in (config, alone)
    )
    assert list(ours) == list(theirs)
    # Sums in another order: equal at first, and later as near as training lets rounding grow.
    for early in [number for number in ours if number <= 100]:
        assert ours[early] == pytest.approx(theirs[early], rel=1e-4 if early <= 10 else 2e-2), early

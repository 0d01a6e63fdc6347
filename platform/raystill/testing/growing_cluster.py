"""A Ray cluster on this machine whose autoscaler (v2) adds and removes nodes: fake provider, real raylets.

The head has no CPU, as in cluster/*.yaml.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from raystill.testing.ports import find_port
from raystill.testing.ray_head import RayHead, ray_head

IDLE_SECONDS = 6.0
_HEAD_ID = "f" * 51 + "00000"
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_NODE_VARIABLE = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
_ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    _NODE_VARIABLE: _HEAD_ID,
    "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
    "RAY_DEFAULT_OBJECT_STORE_MEMORY_BYTES": "80000000",
}
_NOTHING: dict[str, list[str]] = {
    name: []
    for name in (
        "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
        "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
        "rsync_filter",
    )
}  # fmt: skip


@dataclass(frozen=True)
class GrowingCluster:
    """The head, and what the autoscaler has put beside it."""

    head: RayHead

    def raylets(self) -> dict[str, psutil.Process]:
        """The raylets of added nodes, by node id."""
        found = {}
        for process in self.head.processes():
            with contextlib.suppress(psutil.Error):
                node = process.environ().get(_NODE_VARIABLE, _HEAD_ID)
                if process.name() == "raylet" and node != _HEAD_ID:
                    found[node] = process
        return found

    def kill_nodes(self) -> set[str]:
        """SIGKILL every added node with all that runs there, as a machine that is taken away; their ids."""
        killed = set()
        for node, raylet in self.raylets().items():
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [raylet, *raylet.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            killed.add(node)
        return killed


@contextlib.contextmanager
def growing_cluster(
    node: Mapping[str, float],
    most: int,
    *,
    labels: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[GrowingCluster]:
    """A head, and up to `most` nodes with the resources of `node` and `labels`, which leave when idle.

    `environment` is that of every process of the cluster. Raises EnvironmentFault where the head doesn't
    answer.
    """
    folder, port = Path(tempfile.mkdtemp(prefix="rsg-", dir="/tmp")), find_port()
    scaling = folder / "scaling.json"
    scaling.write_text(json.dumps(_scaling(node, most, labels or {}, f"127.0.0.1:{port}")), encoding="utf-8")
    with ray_head(
        0,
        port=port,
        folder=folder,
        options=[f"--autoscaling-config={scaling}"],
        environment=_ENVIRONMENT | dict(environment or {}),
    ) as head:
        yield GrowingCluster(head)


def _scaling(node: Mapping[str, float], most: int, labels: Mapping[str, str], address: str) -> dict[str, Any]:
    kind = {"resources": dict(node), "labels": dict(labels), "min_workers": 0, "max_workers": most}
    return {
        **_NOTHING,
        "cluster_name": "growing",
        "max_workers": most,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "head_node_type": "ray.head.default",
        "provider": {
            "type": "external",
            "module": _PROVIDER,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": _HEAD_ID,
            "gcs_address": address,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {**kind, "node_config": {}},
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }

"""A Ray cluster on this machine whose autoscaler (v2) adds and removes nodes: fake provider, real raylets.

The head has no CPU, as in cluster/*.yaml. Everything is ended by process id: Ray's own `ray stop` would end
every Ray on the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from raystill.testing.ports import find_port

HEAD_ID = "f" * 51 + "00000"
# For the head and for everybody who joins it.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "c" * 64}
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


@dataclass(frozen=True)
class GrowingCluster:
    """`address` is the head's; `folder` holds its session, by which its processes are known."""

    address: str
    folder: Path

    def processes(self) -> list[psutil.Process]:
        """Every process of the cluster."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.folder) in part for part in process.cmdline()):
                    found.append(process)
        return found

    def raylets(self) -> dict[str, psutil.Process]:
        """The raylets of added nodes, by node id."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                node = process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING", HEAD_ID)
                if process.name() == "raylet" and node != HEAD_ID:
                    found[node] = process
        return found


@contextlib.contextmanager
def growing_cluster(node: dict[str, float], most: int, **environment: str) -> Iterator[GrowingCluster]:
    """A head, and up to `most` nodes with the resources of `node`, which leave after 6 idle seconds.

    `environment` is that of every process of the cluster.
    """
    folder = Path(tempfile.mkdtemp(prefix="rsg-", dir="/tmp"))
    port = find_port()
    config = {
        "cluster_name": "growing",
        "max_workers": most,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.1,
        "head_node_type": "ray.head.default",
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": node, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "auth": {},
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    (folder / "scaling.json").write_text(json.dumps(config), encoding="utf-8")
    head = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}",
            "--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=0",
            f"--temp-dir={folder}", "--include-dashboard=false", "--object-store-memory=80000000",
            f"--ray-client-server-port={find_port()}",
            f"--autoscaling-config={folder / 'scaling.json'}",
        ],
        env=os.environ
        | TOKEN
        | environment
        | {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEFAULT_OBJECT_STORE_MEMORY_BYTES": "80000000",
            "RAY_worker_niceness": "0",
        },
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    cluster = GrowingCluster(f"127.0.0.1:{port}", folder)
    try:
        wait_for(port)
        yield cluster
    finally:
        head.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=60)
        for process in cluster.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(port: int) -> None:
    """Until the head answers."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"no Ray on port {port}")

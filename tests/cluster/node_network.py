"""Nodes with addresses of their own on one machine: a network namespace each, joined by a bridge.

The first namespace holds the bridge and the head. Nothing outside the namespaces is changed. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NETWORK = "10.213.0"
PORT = 6379
PATIENCE_SECONDS = 300
# Ends once so many nodes are there.
COUNT = """
import time, ray
ray.init(address="{address}", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < {nodes}:
    time.sleep(0.2)
"""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "d" * 64}


@dataclass
class NodeNetwork:
    """Namespaces `names`; that of the head first."""

    names: list[str]
    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where drivers in the first namespace join."""
        return f"{NETWORK}.1:{PORT}"

    def spawn(self, position: int, command: Sequence[str], **more: str) -> subprocess.Popen[bytes]:
        """Start a command on a node; what it prints goes to a file."""
        environment = os.environ | TOKEN | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"} | more
        with (self.folder / f"printed-{position}").open("ab") as printed:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[position], *command], env=environment, stdout=printed,
                stderr=printed,
            )  # fmt: skip
        self.started.append(process)
        return process

    def printed(self) -> str:
        """What everything on all nodes printed."""
        return "\n".join(
            f"{path.name}: {path.read_text(encoding='utf-8', errors='replace')}"
            for path in sorted(self.folder.glob("printed-*"))
        )


def why_not() -> str:
    """Why this machine can't have such nodes; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"rsn-probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"`ip netns` does not work here: {error}"
    return ""


@contextlib.contextmanager
def node_network(num_workers: int) -> Iterator[NodeNetwork]:
    """A head without CPUs and `num_workers` nodes of one CPU, each with its own address."""
    names = [f"rsn-{os.getpid()}-{position}" for position in range(num_workers + 1)]
    with tempfile.TemporaryDirectory(prefix="rsn-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        network = NodeNetwork(names, Path(folder))
        try:
            _connect(names)
            _start_ray(network)
            yield network
        finally:
            _end(network)


def _connect(names: list[str]) -> None:
    head = names[0]
    for name in names:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", head, "link", "add", "bridge", "type", "bridge")
    _ip("-n", head, "addr", "add", f"{NETWORK}.1/24", "dev", "bridge")
    _ip("-n", head, "link", "set", "bridge", "up")
    for position, name in enumerate(names[1:], 1):
        _ip(
            "-n", head, "link", "add", f"to{position}", "type", "veth", "peer", "name", "node0", "netns", name
        )
        _ip("-n", head, "link", "set", f"to{position}", "master", "bridge", "up")
        _ip("-n", name, "addr", "add", f"{NETWORK}.{position + 1}/24", "dev", "node0")
        _ip("-n", name, "link", "set", "node0", "up")


def _start_ray(network: NodeNetwork) -> None:
    """Start a head and the nodes; returns once all of them are there."""
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--object-store-memory=80000000"]
    ray += ["--min-worker-port=0", "--max-worker-port=0"]
    # A folder for each: nodes that start at once in one folder choose the same names for their sockets.
    own = [
        [f"--node-ip-address={NETWORK}.{position + 1}", f"--temp-dir={network.folder / str(position)}"]
        for position in range(len(network.names))
    ]
    network.spawn(0, [*ray, *own[0], "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"])
    probe = f"import socket; socket.create_connection(('{NETWORK}.1', {PORT}), timeout=5)"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while network.spawn(0, [sys.executable, "-c", probe]).wait():
        if time.monotonic() > deadline:
            raise TimeoutError(network.printed())
        time.sleep(0.5)
    for position in range(1, len(network.names)):
        network.spawn(position, [*ray, *own[position], f"--address={network.address}", "--num-cpus=1"])
    counting = COUNT.format(address=network.address, nodes=len(network.names))
    counter = network.spawn(0, [sys.executable, "-c", counting])
    try:
        counter.wait(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(network.printed()) from error
    if counter.returncode:
        raise RuntimeError(network.printed())


def _end(network: NodeNetwork) -> None:
    for process in network.started:
        process.terminate()
    _, alive = psutil.wait_procs([psutil.Process(p.pid) for p in network.started if p.poll() is None], 20)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process in alive or any(str(network.folder) in part for part in process.cmdline()):
                process.kill()
    for name in network.names:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

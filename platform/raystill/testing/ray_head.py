"""A Ray head of one's own on this machine, with token authentication: for tests, rehearsals and benchmarks.

It is a child process on loopback with ports of its own. Everything is ended by process id: Ray's own
`ray stop` would end every Ray on the machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from raystill.errors import EnvironmentFault
from raystill.testing.ports import find_port

_HOST = "127.0.0.1"
_START_SECONDS, _END_SECONDS, _POLL_SECONDS = 300.0, 60.0, 0.1
_STORE_BYTES = 80_000_000
# Of another Ray that this process may have joined.
_FOREIGN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH")


@dataclass(frozen=True)
class RayHead:
    """`address` is where drivers join, `dashboard` where jobs are submitted ("" without one).

    `environment` is what every process needs that has to do with this cluster: the token is in it.
    `folder` holds the session, by which the cluster's processes are known.
    """

    address: str
    dashboard: str
    folder: Path
    environment: Mapping[str, str] = field(repr=False)

    def processes(self) -> list[psutil.Process]:
        """Every process of the cluster."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.folder) in part for part in process.cmdline()):
                    found.append(process)
        return found


@contextlib.contextmanager
def ray_head(
    num_cpus: int,
    *,
    port: int | None = None,
    folder: Path | None = None,
    with_dashboard: bool = False,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[RayHead]:
    """Start a head with `num_cpus` and further `options` of `ray start`; `environment` is its processes'.

    `port` and `folder` (a short path; removed afterwards) unset: new ones. Raises EnvironmentFault where it
    doesn't answer.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="rsh-", dir="/tmp"))
    port = port or find_port()
    dashboard = find_port() if with_dashboard else None
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}",
        f"--node-ip-address={_HOST}", "--min-worker-port=0", "--max-worker-port=0",
        f"--num-cpus={num_cpus}", f"--temp-dir={folder}", f"--object-store-memory={_STORE_BYTES}",
        f"--ray-client-server-port={find_port()}", f"--dashboard-agent-listen-port={find_port()}",
        f"--include-dashboard={'true' if with_dashboard else 'false'}", *options,
    ]  # fmt: skip
    command += [f"--dashboard-host={_HOST}", f"--dashboard-port={dashboard}"] if dashboard else []
    # Jobs say `python`, and mean this one.
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    around = {"RAY_worker_niceness": "0", "PATH": paths} | dict(environment or {})
    child = subprocess.Popen(
        command,
        env=_without_foreign(os.environ) | own | around,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://{_HOST}:{dashboard}" if dashboard else ""
    head = RayHead(f"{_HOST}:{port}", url, folder, own)
    try:
        for wanted in (port, dashboard):
            if wanted is not None:
                _wait_for(wanted, child)
        yield head
    finally:
        _end(head, child)


def joining_environment(head: RayHead, **more: str) -> dict[str, str]:
    """The environment of a process that has to do with `head` and with no other Ray."""
    return _without_foreign(os.environ) | dict(head.environment) | more


def _without_foreign(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _FOREIGN}


def _wait_for(port: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((_HOST, port)) == 0:
                return
        time.sleep(_POLL_SECONDS)
    raise EnvironmentFault(
        f"a Ray head did not answer within {_START_SECONDS:.0f} s", where=f"port {port}", fix="free memory"
    )


def _end(head: RayHead, child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=_END_SECONDS)
    for process in head.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()
    child.wait()
    shutil.rmtree(head.folder, ignore_errors=True)

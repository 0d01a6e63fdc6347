"""A job on a real Ray head, submitted by the line that its own file documents."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raystill.run.manifest import load_manifest

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")
ENVIRONMENT = os.environ | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # loopback only; what is tested here is the job
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The address of the job server of a one-node cluster."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="rsj-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}",
             f"--temp-dir={folder}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
             "--object-store-memory=100000000",
             f"--ray-client-server-port={free_port()}", "--node-ip-address=127.0.0.1"],
            env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(timeout=30)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise TimeoutError(f"no Ray dashboard on port {port}")


def test_a_submitted_job_runs_its_stage(dashboard: str, tmp_path: Path) -> None:
    submit = [RAY, "job", "submit", "--address", dashboard, "--working-dir", "."]
    job = [
        "python",
        "jobs/prepare_prompts.py",
        "--config",
        "configs/demo.yaml",
        "--set",
        f"run.dir={tmp_path}",
    ]
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(
            [*submit, "--runtime-env", "cluster/runtime_env.yaml", "--", *job],
            capture_output=True, text=True, check=False, timeout=180, env=ENVIRONMENT, cwd=ROOT,
        )  # fmt: skip
        # The dashboard answers before the agent that runs jobs does.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(1.0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1/1] prepare" in done.stdout + done.stderr
    manifest = load_manifest(tmp_path / "demo" / "prompts")
    assert manifest is not None and manifest.counts["kept"] > 0

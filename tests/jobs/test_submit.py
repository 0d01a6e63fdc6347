"""Jobs on a real Ray head with token authentication: the documented line, and `raystill submit`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from raystill.run.manifest import load_manifest

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")
TOKEN = "a" * 64
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "NO_COLOR": "1",
    "PYTHONPATH": str(ROOT / "platform"),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The address of the job server of a one-node cluster."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="rsj-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}",
             f"--temp-dir={folder}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
             "--object-store-memory=100000000",
             f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
             "--node-ip-address=127.0.0.1"],
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


def raystill(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "raystill.cli.main", *arguments],
        capture_output=True, text=True, check=False, timeout=180, env=ENVIRONMENT | changes, cwd=ROOT,
    )  # fmt: skip


def submit_line(dashboard: str, folder: Path, *more: str) -> list[str]:
    config = ["--config", "configs/demo.yaml", "--set", f"run.dir={folder}"]
    return ["submit", "prepare", *config, "--address", dashboard, *more]


def test_without_the_token_nothing_is_answered(dashboard: str, tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{dashboard}/api/jobs/", timeout=30)
    assert refused.value.code == 401
    done = raystill(*submit_line(dashboard, tmp_path), RAY_AUTH_TOKEN="b" * 64)
    assert done.returncode == 5, done.stdout + done.stderr
    assert "token" in done.stderr and "RAY_AUTH_TOKEN" in done.stderr


def test_a_job_is_submitted_once_attached_to_and_has_its_own_exit_code(
    dashboard: str, tmp_path: Path
) -> None:
    first = raystill(*submit_line(dashboard, tmp_path, "--no-wait", "--json"))
    assert first.returncode == 0, first.stderr
    again = raystill(*submit_line(dashboard, tmp_path))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "[1/1] prepare" in again.stdout
    name = json.loads(first.stdout)["submission_id"]
    listed = json.loads(raystill("jobs", "--address", dashboard, "--json").stdout)["jobs"]
    assert [job["submission_id"] for job in listed if job["run"] == "demo"] == [name]
    assert f"attached to {name}" in again.stderr and listed[-1]["status"] == "SUCCEEDED"
    manifest = load_manifest(tmp_path / "demo" / "prompts")
    assert manifest is not None and manifest.counts["kept"] > 0
    # What it says of itself after its end, and a failing job's own code instead of Ray's 1.
    assert "prepare" in raystill("logs", "demo", "--address", dashboard).stdout
    missing = raystill(
        *submit_line(dashboard, tmp_path, "--set", "run.name=broken"),
        "--set", "prompts.sources.0.path=/nowhere.jsonl",
    )  # fmt: skip
    assert missing.returncode == 3, missing.stdout + missing.stderr
    assert "/nowhere.jsonl" in missing.stdout


def test_the_documented_line_of_a_job_file_works(dashboard: str, tmp_path: Path) -> None:
    job = ["python", "jobs/prepare_prompts.py", "--config", "configs/demo.yaml"]
    done = subprocess.run(
        [RAY, "job", "submit", "--address", dashboard, "--working-dir", ".",
         "--runtime-env", "cluster/runtime_env.yaml", "--", *job, "--set", f"run.dir={tmp_path}"],
        capture_output=True, text=True, check=False, timeout=180, env=ENVIRONMENT, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_manifest(tmp_path / "demo" / "prompts") is not None

"""Jobs on a real Ray head with token authentication: the documented line, and `raystill submit`."""

from __future__ import annotations

import importlib.util
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raystill.checkpoint.store import latest_valid
from raystill.run.manifest import Manifest, load_manifest, save_manifest
from raystill.testing.ports import find_port
from raystill.train.metrics import iter_metrics

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


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The address of the job server of a one-node cluster."""
    port = find_port()
    with tempfile.TemporaryDirectory(prefix="rsj-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={find_port()}",
             f"--temp-dir={folder}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
             "--object-store-memory=100000000",
             f"--ray-client-server-port={find_port()}", f"--dashboard-agent-listen-port={find_port()}",
             "--node-ip-address=127.0.0.1"],
            env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            head.send_signal(signal.SIGTERM)
            try:
                head.wait(timeout=120)
            except subprocess.TimeoutExpired:
                head.kill()
                head.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise TimeoutError(f"no Ray dashboard on port {port}")


def raystill(*arguments: str, cwd: Path = ROOT, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "raystill.cli.main", *arguments],
        capture_output=True, text=True, check=False, timeout=600, env=ENVIRONMENT | changes, cwd=cwd,
    )  # fmt: skip


def submit_line(dashboard: str, folder: Path, *more: str) -> list[str]:
    config = ["--config", "configs/demo.yaml", "--set", f"run.dir={folder}"]
    return ["submit", "prepare", *config, "--address", dashboard, *more]


def test_without_the_token_nothing_is_answered(dashboard: str, tmp_path: Path) -> None:
    """I44."""
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
        capture_output=True, text=True, check=False, timeout=600, env=ENVIRONMENT, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_manifest(tmp_path / "demo" / "prompts") is not None


def wait_until(reached: Callable[[], bool], dashboard: str, folder: Path) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(raystill("logs", "endless", "--address", dashboard, cwd=folder).stdout)
        time.sleep(0.2)


def write_training_job(root: Path) -> tuple[Path, Any]:
    """A folder to submit from, whose run trains for hours and saves nothing by itself for as long."""
    spec = importlib.util.spec_from_file_location("tiny_world", ROOT / "tests" / "train" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    from raystill.text.chat import load_chat_format

    module.make_tokenizer().save_pretrained(root / "tokenizer")
    chat = load_chat_format(str(root / "tokenizer"))
    module.write_store(root / "store", chat, module.make_rows(chat, 60))
    world = module.World(root, root / "tokenizer", chat)
    config = world.config(
        "endless", training={"steps": 10_000_000, "save_every": 10_000_000, "log_every": 10}
    )
    paths = world.paths(config)
    world.list_requests(paths)
    for stage in ("generate", "score"):
        save_manifest(paths.stage_dir(stage), Manifest(stage=stage, fingerprint=stage, config={}, inputs={}))
    paths.run_log.parent.mkdir(parents=True, exist_ok=True)
    paths.run_log.touch()  # a directory without any of its own files is not taken for a run's
    folder = root / "submitted"
    (folder / "cluster").mkdir(parents=True)
    (folder / "endless.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    environment = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text(encoding="utf-8"))
    environment["env_vars"]["PYTHONPATH"] = str(ROOT / "platform")
    (folder / "cluster" / "runtime_env.yaml").write_text(yaml.safe_dump(environment))
    return folder, paths


@pytest.mark.soak  # a minute: a job that trains, twice
def test_a_stopped_training_job_saves_its_step_and_resume_goes_on_from_there(
    dashboard: str, tmp_path: Path
) -> None:
    """F28: SIGTERM, and SIGKILL after Ray's deadline."""
    folder, paths = write_training_job(tmp_path)
    checkpoints = paths.checkpoints("distill")

    def logged() -> int:
        return max((line["step"] for line in iter_metrics(paths.training_metrics("distill"))), default=0)

    here = ["--address", dashboard, "--no-wait", "--json"]
    submitted = raystill("submit", "distill", "--config", "endless.yaml", *here, cwd=folder)
    assert submitted.returncode == 0, submitted.stderr
    wait_until(lambda: logged() > 0, dashboard, folder)
    assert latest_valid(checkpoints).path is None
    stopped = raystill("stop", "endless", "--address", dashboard, "--json", cwd=folder)
    assert json.loads(stopped.stdout)["status"] == "STOPPED", stopped.stdout + stopped.stderr
    assert json.loads(stopped.stdout)["result"] == 130
    saved = latest_valid(checkpoints)
    assert saved.step is not None and saved.step > 0 and saved.passed_over == ()
    resumed = raystill("resume", "endless", *here, cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    first, second = (json.loads(done.stdout)["submission_id"] for done in (submitted, resumed))
    assert (first[-2:], second[-2:]) == ("-1", "-2") and first[:-2] == second[:-2]
    wait_until(lambda: logged() > (saved.step or 0), dashboard, folder)
    again = raystill("stop", second, "--address", dashboard, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (latest_valid(checkpoints).step or 0) > saved.step

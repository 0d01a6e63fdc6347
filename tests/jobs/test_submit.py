"""Jobs on a real Ray head with token authentication: the documented line, and `raystill submit`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
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

import psutil
import pytest
import yaml

from raystill.checkpoint.store import latest_valid
from raystill.run.manifest import Manifest, load_manifest, save_manifest
from raystill.testing.ports import find_port
from raystill.testing.scripted_api import ScriptedApi
from raystill.train.metrics import iter_metrics

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")
TOKEN = "a" * 64
KEY = f"canary-{secrets.token_hex(8)}-key"  # drawn: this file is among what jobs upload
DEMO_TEACHER = ROOT / "platform" / "raystill" / "demo" / "teacher"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "CANARY_KEY": KEY,
    "NO_COLOR": "1",
    "PYTHONPATH": str(ROOT / "platform"),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


@pytest.fixture(scope="module")
def session() -> Iterator[Path]:
    """Where the cluster's Ray writes."""
    with tempfile.TemporaryDirectory(prefix="rsj-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def dashboard(session: Path) -> Iterator[str]:
    """The address of the job server of a one-node cluster."""
    port = find_port()
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={find_port()}",
         f"--temp-dir={session}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
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
    folder = write_submission(root)
    (folder / "endless.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return folder, paths


def write_submission(root: Path) -> Path:
    """A folder to submit from: the documented environment, with this repository's code instead of a copy."""
    folder = root / "submitted"
    (folder / "cluster").mkdir(parents=True)
    environment = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text(encoding="utf-8"))
    environment["env_vars"]["PYTHONPATH"] = str(ROOT / "platform")
    (folder / "cluster" / "runtime_env.yaml").write_text(yaml.safe_dump(environment))
    return folder


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


def canary_config(root: Path, base_url: str, *, trains: bool) -> dict[str, Any]:
    """A closed teacher whose key every process has in its environment; `trains` goes on to the report."""
    training = {
        # One that can write already: a student that writes nothing has no evaluation.
        "student": {"base_model_name": str(DEMO_TEACHER)},
        "train": {"sft": {"learning_rate": 1e-6}},
        "training": {"steps": 2, "cpus_per_worker": 1, "checkpoint_cleanup": {"min_free_space_gb": 0.0}},
        "evaluation": {"min_samples": 1},
        "export": {"verify_prompts": 0},
    }
    return {
        **(training if trains else {}),
        "run": {"name": "canary", "dir": str(root / "runs")},
        "device": {"type": "cpu"},
        "prompts": {
            "sources": [{"path": str(DEMO_TEACHER.parent / "data" / "prompts.jsonl"), "limit": 60}],
            "eval_size": 10,
        },
        "teacher": {
            "closed": {
                "model": {"name": "scripted"},
                "endpoint": {"base_url": base_url, "api_key_env": "CANARY_KEY"},
                "pipeline": {"max_new_tokens": 16},
            },
            "store": {"num_partitions": 2},
            "signals": {"num_logprobs": 0},
        },
    }  # fmt: skip


def fetch(dashboard: str, path: str) -> bytes:
    request = urllib.request.Request(f"{dashboard}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return bytes(reply.read())
    except urllib.error.HTTPError as refused:  # a list that this Ray can't make; what it says counts as well
        return bytes(refused.read())


def holding_files(*roots: Path) -> list[str]:
    """Files below `roots` that hold the key."""
    found = []
    for path in (path for root in roots for path in root.rglob("*") if path.is_file()):
        with contextlib.suppress(OSError):
            if KEY.encode() in path.read_bytes():
                found.append(str(path))
    return found


def arguments_of_processes() -> set[str]:
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found.add(" ".join(process.cmdline()))
    return found


@pytest.mark.parametrize("trains", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_the_key_of_a_closed_teacher_is_written_nowhere(
    dashboard: str, session: Path, tmp_path: Path, trains: bool
) -> None:
    """Not on a terminal, in a log, in Ray's session, API or arguments, nor in anything that a run leaves:
    manifests, and where it trains, checkpoints, models and the report."""
    seen: set[str] = set()
    with ScriptedApi() as api:
        folder = write_submission(tmp_path)
        config = canary_config(tmp_path, api.base_url, trains=trains)
        (folder / "canary.yaml").write_text(yaml.safe_dump(config))
        line = [sys.executable, "-P", "-m", "raystill.cli.main", "submit", "run", "--config", "canary.yaml"]
        line += ["--address", dashboard]
        with (tmp_path / "printed").open("wb") as printed:
            job = subprocess.Popen(
                line, cwd=folder, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT / "platform")}, stdout=printed,
                stderr=printed,
            )  # fmt: skip
            while job.poll() is None:
                seen |= arguments_of_processes()
                time.sleep(0.5)
        assert job.returncode == 0, (tmp_path / "printed").read_text()
        assert api.counts.answered >= 60
    run = tmp_path / "runs" / "canary"
    assert load_manifest(run / "generate") is not None
    assert (run / "report.html").exists() == trains
    assert any(run.rglob("checkpoints/step-*")) == trains
    name = json.loads(raystill("jobs", "--address", dashboard, "--json").stdout)["jobs"][-1]["submission_id"]
    lists = ("actors", "tasks", "workers", "nodes", "jobs", "objects", "placement_groups", "runtime_envs")
    pages = [f"/api/v0/{kind}?detail=1" for kind in lists]
    pages += ["/api/jobs/", f"/api/jobs/{name}", f"/api/jobs/{name}/logs", "/nodes?view=details"]
    assert "canary" in fetch(dashboard, "/api/jobs/").decode()
    assert '"result":true' in fetch(dashboard, "/api/v0/actors?detail=1").decode().replace(" ", "")
    assert [page for page in pages if KEY.encode() in fetch(dashboard, page)] == []
    assert any("raystill" in words for words in seen) and not [words for words in seen if KEY in words]
    assert holding_files(tmp_path, session) == []

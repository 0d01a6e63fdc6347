"""A run on a cluster that begins without CPUs: nodes come, all are killed in mid-generation and again in
mid-training, nothing is lost, a node evaluates and exports, and all go.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raystill.checkpoint.store import latest_valid, list_checkpoints
from raystill.run.manifest import load_manifest
from raystill.run.paths import RunPaths, StageName
from raystill.teacher.fake_engine import SECONDS_PER_ROW_VARIABLE
from raystill.testing.growing_cluster import GrowingCluster, growing_cluster
from raystill.testing.ray_head import joining_environment
from raystill.train.metrics import iter_metrics

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "platform" / "raystill" / "demo"
NUM_PROMPTS = 64
# With two rows in flight, 16 s of work for a node, of which the kill takes place after the first.
SECONDS_PER_ROW = "0.5"
# Seconds of training are left at the step at which the nodes go.
STEPS = 600
SPOT = {"market-type": "spot"}
PATIENCE_SECONDS = 300


def write_config(folder: Path, address: str) -> Path:
    lines = (DEMO / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:NUM_PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values: dict[str, Any] = {
        "run": {"name": "grown", "dir": str(folder / "runs")},
        "device": {"type": "cpu"},
        "cluster": {"address": address, "teacher_labels": SPOT, "training_labels": SPOT},
        "prompts": {"sources": [{"path": str(folder / "prompts.jsonl")}], "eval_size": 8},
        "teacher": {
            "engine": "fake",
            "open": {
                "model": {"name": str(DEMO / "teacher"), "bfloat16": False},
                "pipeline": {"max_new_tokens": 24, "batch_size": 2},
            },
            "signals": {"num_logprobs": 4},
            "store": {"num_partitions": 4, "rows_per_part": 4},
        },
        "student": {"base_model_name": str(DEMO / "teacher"), "init": "base"},
        "training": {
            "steps": STEPS, "save_every": 20, "log_every": 20, "max_seq_len": 256, "num_workers": 2,
            "cpus_per_worker": 1, "checkpoint_cleanup": {"min_free_space_gb": 0.0},
        },
        # Hardly moved: what the fake teacher teaches is to write nothing, which an evaluation refuses.
        "train": {
            "distillation": {
                "init": "student", "per_device_train_batch_size": 4, "learning_rate": 1e-6,
            }
        },
        "evaluation": {"min_samples": 4},
        "export": {"verify_prompts": 0},
    }  # fmt: skip
    path = folder / "run.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def raystill(cluster: GrowingCluster, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "raystill.cli.main", *arguments],
            env=joining_environment(cluster.head, OMP_NUM_THREADS="1", NO_COLOR="1"),
            stdout=stream, stderr=stream,
        )  # fmt: skip


def wait_until(reached: Callable[[], Any], what: str) -> None:
    started = time.monotonic()
    while not reached():
        assert time.monotonic() - started < PATIENCE_SECONDS, f"waited {PATIENCE_SECONDS} s for {what}"
        time.sleep(0.05)


def lose_the_nodes(cluster: GrowingCluster, run: subprocess.Popen[bytes], reached: Callable[[], Any]) -> None:
    """Kill every node once `reached`, and see others take their place."""
    wait_until(lambda: reached() or run.poll() is not None, "the work that the nodes are killed in")
    lost = cluster.kill_nodes()
    assert lost, "there was no node to kill"
    wait_until(lambda: set(cluster.raylets()) - lost, "nodes in the place of those that were killed")


@pytest.mark.parametrize("until", ["generate", pytest.param("export", marks=pytest.mark.soak)])
def test_nodes_come_are_lost_and_replaced_and_go(tmp_path: Path, until: StageName) -> None:
    log, root = tmp_path / "run.log", tmp_path / "runs" / "grown"
    paths = RunPaths(root, store=root / "teacher_store")
    slow = {SECONDS_PER_ROW_VARIABLE: SECONDS_PER_ROW}
    with growing_cluster({"CPU": 1}, most=2, labels=SPOT, environment=slow) as cluster:
        config = str(write_config(tmp_path, cluster.head.address))
        # What no node of this cluster can ever give is refused: not waited for, nor after the teacher's work.
        asked = ("run.name=greedy", "cluster.training_labels.market-type=on-demand")
        changes = [word for text in asked for word in ("--set", text)]
        greedy = raystill(cluster, log, "run", "--config", config, "--until", "distill", *changes)
        assert greedy.wait(PATIENCE_SECONDS) == 4, log.read_text()
        assert "distill asks for 2 training workers" in log.read_text()
        assert "may add no nodes" in log.read_text() and not (root.parent / "greedy" / "generate").exists()
        run = raystill(cluster, log, "run", "--config", config, "--until", until)
        lose_the_nodes(cluster, run, lambda: any(paths.store.rglob("*.parquet")))
        reached = 0
        if until == "export":  # two workers on two nodes of one CPU: the teacher's have given theirs back
            saved = paths.checkpoints("distill")
            lose_the_nodes(cluster, run, lambda: len(list_checkpoints(saved)) >= 2)
            reached = latest_valid(saved).step or 0
        wait_until(lambda: run.poll() is not None, "the run")
        assert run.returncode == 0, log.read_text()
        wait_until(lambda: not cluster.raylets(), "idle nodes to leave")
    generated = load_manifest(paths.stage_dir("generate"))
    assert generated is not None and generated.counts["done"] == NUM_PROMPTS, generated
    if until == "export":
        require_every_step(paths, reached)
        events = [json.loads(line) for line in paths.run_log.read_text(encoding="utf-8").splitlines()]
        moved = [event["stage"] for event in events if "on another node" in event.get("message", "")]
        assert moved == ["evaluate", "export"] and load_manifest(paths.stage_dir("export")) is not None


def require_every_step(paths: RunPaths, reached: int) -> None:
    """Training went on from the step that was `reached` when the nodes were lost, to its end."""
    trained = load_manifest(paths.stage_dir("distill"))
    assert trained is not None and trained.counts["steps"] == STEPS > reached > 0
    lines = [line["step"] for line in iter_metrics(paths.training_metrics("distill")) if "train/loss" in line]
    assert lines == [*range(20, STEPS + 1, 20)]
    assert "going on from step" in paths.run_log.read_text(encoding="utf-8")

"""Generation on a cluster that begins without CPUs: nodes come, one is killed, nothing is lost, all go."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raystill.run.manifest import load_manifest
from raystill.teacher.fake_engine import SECONDS_PER_ROW_VARIABLE

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "platform" / "raystill" / "demo"
_SPEC = importlib.util.spec_from_file_location(
    "growing_cluster", Path(__file__).parent / "growing_cluster.py"
)
assert _SPEC is not None and _SPEC.loader is not None
growing = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = growing
_SPEC.loader.exec_module(growing)
NUM_PROMPTS = 64
# With two rows in flight, 16 s of work for a node, of which the kill takes place after the first.
SECONDS_PER_ROW = "0.5"
PATIENCE_SECONDS = 300


def write_config(folder: Path, address: str) -> Path:
    lines = (DEMO / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:NUM_PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values: dict[str, Any] = {
        "run": {"name": "grown", "dir": str(folder / "runs")},
        "device": {"type": "cpu"},
        "cluster": {"address": address},
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
    }
    path = folder / "run.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def raystill(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "raystill.cli.main", *arguments],
            env=os.environ | growing.TOKEN | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
            stdout=stream, stderr=stream,
        )  # fmt: skip


def wait_until(reached: Callable[[], Any], what: str) -> float:
    started = time.monotonic()
    while not reached():
        assert time.monotonic() - started < PATIENCE_SECONDS, f"waited {PATIENCE_SECONDS} s for {what}"
        time.sleep(0.2)
    return time.monotonic() - started


def test_nodes_come_for_the_teacher_and_go_again(tmp_path: Path) -> None:
    slow = {SECONDS_PER_ROW_VARIABLE: SECONDS_PER_ROW}
    log = tmp_path / "run.log"
    with growing.growing_cluster({"CPU": 1}, most=2, **slow) as cluster:
        config = str(write_config(tmp_path, cluster.address))
        # What no node of this cluster can ever give is refused, not waited for.
        asked = ("run.name=greedy", "teacher.vllm.num_engines=9")
        changes = [word for text in asked for word in ("--set", text)]
        greedy = raystill(log, "run", "--config", config, "--until", "generate", *changes)
        assert greedy.wait(PATIENCE_SECONDS) == 4, log.read_text()
        assert "may add no nodes" in log.read_text()
        run = raystill(log, "run", "--config", config, "--until", "generate")
        came = wait_until(cluster.raylets, "the first node")
        parts = tmp_path / "runs" / "grown" / "teacher_store"
        wait_until(lambda: any(parts.rglob("*.parquet")), "the first committed rows")
        first = dict(cluster.raylets())
        for raylet in first.values():
            raylet.kill()
        seen: set[str] = set()

        def is_over() -> bool:
            """Notes the nodes that are there: once the run is over, they may have left already."""
            over = run.poll() is not None
            seen.update(cluster.raylets())
            return over

        wait_until(is_over, "the run")
        assert run.returncode == 0, log.read_text()
        manifest = load_manifest(tmp_path / "runs" / "grown" / "generate")
        assert manifest is not None and manifest.counts["done"] == NUM_PROMPTS, manifest
        assert seen - set(first), "no node took the place of the killed one"
        went = wait_until(lambda: not cluster.raylets(), "idle nodes to leave")
    print(f"first node after {came:.1f} s, gone {went:.1f} s after the run")

"""Nodes that are killed while a teacher scores and while a sweep searches: nothing is lost.

Those of generation and training are killed in `test_autoscaling`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raystill.run.manifest import Manifest, load_manifest, save_manifest
from raystill.run.paths import RunPaths, StageName
from raystill.run.sweep_paths import SweepPaths
from raystill.store.commit import load_commits
from raystill.store.store import load_store
from raystill.teacher.fake_engine import SECONDS_PER_ROW_VARIABLE
from raystill.testing.growing_cluster import GrowingCluster, growing_cluster
from raystill.testing.ray_head import joining_environment
from raystill.text.chat import load_chat_format
from raystill.tune.records import load_trials

pytestmark = [pytest.mark.ray, pytest.mark.soak]  # two minutes: clusters whose nodes come, die and come again
TESTS = Path(__file__).resolve().parents[1]
DEMO = TESTS.parent / "platform" / "raystill" / "demo"
RATE = "train.distillation.learning_rate"
NUM_PROMPTS, SECONDS_PER_ROW = 48, "0.5"
PATIENCE_SECONDS = 400


def load_tiny_world() -> Any:
    """The builders of tests/train, which `importlib` mode keeps off the path."""
    spec = importlib.util.spec_from_file_location("tiny_world_of_losses", TESTS / "train" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cluster() -> Iterator[GrowingCluster]:
    """Nodes with one CPU each come while somebody waits for them."""
    with growing_cluster(
        {"CPU": 1}, most=2, environment={SECONDS_PER_ROW_VARIABLE: SECONDS_PER_ROW}
    ) as running:
        yield running


def start(
    cluster: GrowingCluster, folder: Path, config: dict[str, Any], *words: str
) -> subprocess.Popen[str]:
    file = folder / "run.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    with (folder / "printed").open("a", encoding="utf-8") as printed:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "raystill.cli.main", *words, "--config", str(file)],
            env=joining_environment(cluster.head, OMP_NUM_THREADS="1", NO_COLOR="1"),
            stdout=printed, stderr=printed, text=True,
        )  # fmt: skip


def finish(process: subprocess.Popen[str], folder: Path) -> None:
    try:
        process.wait(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, (folder / "printed").read_text(encoding="utf-8")


def lose_the_nodes(
    cluster: GrowingCluster, run: subprocess.Popen[str], folder: Path, reached: Callable[[], Any]
) -> None:
    """Kill every node once `reached`."""
    started = time.monotonic()
    while not reached():
        printed = (folder / "printed").read_text(encoding="utf-8")
        assert run.poll() is None, printed
        assert time.monotonic() - started < PATIENCE_SECONDS, printed
        time.sleep(0.05)
    assert cluster.kill_nodes(), "there was no node to kill"


def test_scoring_goes_on_where_nodes_were_lost(cluster: GrowingCluster, tmp_path: Path) -> None:
    config = {
        "run": {"name": "scored", "dir": str(tmp_path / "runs")},
        "device": {"type": "cpu"},
        "cluster": {"address": cluster.head.address},
        "prompts": {
            "sources": [{"path": str(DEMO / "data" / "prompts.jsonl"), "limit": NUM_PROMPTS}],
            "eval_size": 8,
        },
        "teacher": {
            "engine": "fake",
            "open": {
                "model": {"name": str(DEMO / "teacher"), "bfloat16": False},
                "pipeline": {"max_new_tokens": 12, "batch_size": 2},
            },
            "signals": {"num_logprobs": 4, "capture": "score"},
            "store": {"num_partitions": 4, "rows_per_part": 4},
        },
    }
    finish(start(cluster, tmp_path, config, "run", "--until", "generate"), tmp_path)
    paths = RunPaths(root=tmp_path / "runs" / "scored", store=tmp_path / "runs" / "scored" / "teacher_store")

    def scored() -> int:
        store = load_store(paths.store)
        found = (load_commits(store, partition, "scores") for partition in range(store.num_partitions))
        return sum(commit.num_rows for commits in found for commit in commits)

    run = start(cluster, tmp_path, config, "score")
    lose_the_nodes(cluster, run, tmp_path, scored)
    at_the_loss = scored()
    finish(run, tmp_path)
    manifest = load_manifest(paths.stage_dir("score"))
    assert manifest is not None and manifest.counts["scored"] == NUM_PROMPTS, manifest
    assert scored() == NUM_PROMPTS > at_the_loss


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_sweep_trains_its_trials_to_the_end(
    cluster: GrowingCluster, tmp_path: Path, num_workers: int
) -> None:
    tiny = load_tiny_world()
    tiny.make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    chat = load_chat_format(str(tmp_path / "tokenizer"))
    tiny.write_store(tmp_path / "store", chat, tiny.make_rows(chat, 60))
    world = tiny.World(tmp_path, tmp_path / "tokenizer", chat)
    config = world.config(
        "searched",
        cluster={"address": cluster.head.address},
        training={"steps": 600, "save_every": 20, "log_every": 20, "num_workers": num_workers},
    )
    paths = world.paths(config)
    world.list_requests(paths)
    stages: tuple[StageName, ...] = ("generate", "score")
    for stage in stages:
        save_manifest(paths.stage_dir(stage), Manifest(stage=stage, fingerprint=stage, config={}, inputs={}))
    tune = {
        "search": "grid",
        "scheduler": "none",
        "report_every": 100,
        "space": {RATE: {"grid": [1e-3, 3e-3, 1e-2]}},
    }
    values = config.model_dump(mode="json", exclude_unset=True) | {"tune": tune}
    sweep = SweepPaths.of(paths, "sweep")
    run = start(cluster, tmp_path, values, "tune")
    lose_the_nodes(cluster, run, tmp_path, lambda: any(trial.reports for trial in load_trials(sweep)))
    finish(run, tmp_path)
    trials = load_trials(sweep)
    assert [trial.outcome for trial in trials] == ["complete"] * 3
    assert all([report.step for report in trial.reports] == [*range(100, 601, 100)] for trial in trials)
    events = [json.loads(line)["event"] for line in sweep.log.read_text(encoding="utf-8").splitlines()]
    assert events.count("trial_started") > 3, "no trial was lost with its node"

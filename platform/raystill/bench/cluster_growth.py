"""Nodes that come when they are asked for, go when they are idle, and are killed while they work."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from raystill.bench.checkpoint_kill import KillSizes, kill_step, last_step
from raystill.bench.cluster_submit import part_times
from raystill.bench.taught_run import taught_run
from raystill.config.load import load_config
from raystill.errors import EnvironmentFault
from raystill.pipeline import run_pipeline
from raystill.teacher.fake_engine import SECONDS_PER_ROW_VARIABLE
from raystill.testing.growing_cluster import GrowingCluster, growing_cluster
from raystill.testing.ray_head import joining_environment

OURS, TASKS, TRAIN = "ours", "plain Ray tasks", "Ray Train, a loop that counts"
_MODULE = "raystill.bench.cluster_sides"
_NODE, _MOST = {"CPU": 1.0}, 1
# A part of the store holds so many rows, of which so many are in flight; a task of the peer's takes as long.
_ROWS_PER_PART, _IN_FLIGHT, _SECONDS_PER_ROW = 4, 2, 0.2
_TASK_SECONDS = _SECONDS_PER_ROW * _ROWS_PER_PART / _IN_FLIGHT
_SLOW = {SECONDS_PER_ROW_VARIABLE: str(_SECONDS_PER_ROW)}
_NUM_PROMPTS = 60
_KILL = KillSizes(width=64, prompts=100)
# A look for nodes takes a while itself, from a core that the sides compute on.
_LONGEST_SECONDS, _LOOK_SECONDS, _LONGEST_SAID = 600.0, 0.1, 3000
_Found = dict[str, dict[str, list[float]]]


def measure_growth(rounds: int, *, kills: bool) -> _Found:
    """Seconds of every round by side: driver's start to first node and row, last row to no node; with
    `kills`, which ends the node after its first row, from then to the next row."""
    found: _Found = {side: {} for side in (OURS, TASKS)}
    with (
        tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch,
        growing_cluster(_NODE, _MOST, environment=_SLOW) as cluster,
    ):
        _grow_with_tasks(cluster, Path(scratch), "first", kills=False)  # until then the autoscaler starts
        for number in range(rounds):
            for side, measure in ((TASKS, _grow_with_tasks), (OURS, _grow_with_teacher)):
                seconds = measure(cluster, Path(scratch), f"grown-{number}", kills=kills)
                for metric, value in seconds.items():
                    found[side].setdefault(metric, []).append(value)
    return found


def _grow_with_teacher(cluster: GrowingCluster, scratch: Path, name: str, *, kills: bool) -> dict[str, float]:
    values = taught_run(scratch, name, _NUM_PROMPTS, eval_size=10)
    values["teacher"]["open"]["pipeline"]["batch_size"] = _IN_FLIGHT
    values["teacher"]["store"] = {"num_partitions": 4, "rows_per_part": _ROWS_PER_PART}
    config = scratch / f"{name}.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    paths = run_pipeline(load_config([config]), until="prepare").paths
    command = ["raystill.cli.main", "run", "--config", str(config), "--until", "generate"]
    with _started(cluster, command, scratch) as driver:
        return _follow(cluster, driver, lambda: part_times(paths.store), kills=kills)


def _grow_with_tasks(cluster: GrowingCluster, scratch: Path, name: str, *, kills: bool) -> dict[str, float]:
    """As many tasks as the teacher writes parts; each writes a line with its time into a file."""
    done = scratch / f"{name}.done"
    command = [_MODULE, "tasks", str(done), str(_NUM_PROMPTS // _ROWS_PER_PART), str(_TASK_SECONDS)]
    with _started(cluster, command, scratch) as driver:
        return _follow(cluster, driver, lambda: times_in(done), kills=kills)


def times_in(file: Path) -> list[float]:
    """The numbers of a file, one per line."""
    return [float(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _follow(
    cluster: GrowingCluster,
    driver: subprocess.Popen[bytes],
    rows: Callable[[], list[float]],
    *,
    kills: bool,
) -> dict[str, float]:
    """Let all be done; with `kills` the node goes after the first row. `rows` are times of useful work."""
    started = psutil.Process(driver.pid).create_time()
    _wait_until(lambda: bool(cluster.raylets()), driver)
    came = time.time()
    found = {"first_node_s": came - started}
    if kills:
        _wait_until(lambda: bool(rows()), driver)
        cluster.kill_nodes()
        killed, before = time.time(), len(rows())
        _wait_until(lambda: len(rows()) > before, driver)
        found["next_row_s"] = rows()[before] - killed
    if driver.wait(_LONGEST_SECONDS):
        raise EnvironmentFault("a side of the benchmark failed", where=str(driver.args))
    deadline = time.monotonic() + _LONGEST_SECONDS
    while cluster.raylets():
        if time.monotonic() > deadline:
            raise EnvironmentFault("nodes stay although they are idle", where=str(driver.args))
        time.sleep(_LOOK_SECONDS)
    times = rows()
    return found | {"first_row_s": times[0] - started, "drain_s": time.time() - times[-1]}


def measure_training_loss(rounds: int) -> _Found:
    """Seconds of every round by side from the loss of the only node to a step that was not done before."""
    found: _Found = {side: {"next_step_s": []} for side in (OURS, TRAIN)}
    with tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch:
        config = _training_config(Path(scratch))
        paths = run_pipeline(load_config([config]), until="generate").paths
        ours = ["raystill.cli.main", "run", "--config", str(config), "--until", "distill"]
        counted = Path(scratch) / "counted.jsonl"
        sides = {
            TRAIN: ([_MODULE, "train", str(counted), str(Path(scratch) / "ray")], counted),
            OURS: (ours, paths.training_metrics("distill")),
        }
        with growing_cluster(_NODE, _MOST) as cluster:
            for _ in range(rounds):
                for side, (command, steps) in sides.items():
                    seconds = _lose_while_training(cluster, command, steps, Path(scratch))
                    found[side]["next_step_s"].append(seconds)
    return found


def _training_config(scratch: Path) -> Path:
    values: dict[str, Any] = taught_run(scratch, "trained", _KILL.prompts, eval_size=20) | {
        "student": {
            "hidden_size": _KILL.width, "intermediate_size": 4 * _KILL.width, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
        },
        "training": {
            "max_seq_len": 256, "log_every": 1, "save_every": _KILL.save_every, "cpus_per_worker": 1,
            "checkpoint_cleanup": {"min_free_space_gb": 0.0, "max_checkpoints": 1},
        },
        # Far more steps than are taken: the milestones lie elsewhere.
        "train": {
            "distillation": {
                "init": "student", "steps": 100_000, "per_device_train_batch_size": 4,
                "evaluation_strategy": "no",
            }
        },
    }  # fmt: skip
    config = scratch / "trained.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return config


def _lose_while_training(cluster: GrowingCluster, command: list[str], steps: Path, scratch: Path) -> float:
    wanted = kill_step(last_step(steps), _KILL)
    with _started(cluster, command, scratch) as driver:
        _wait_until(lambda: last_step(steps) >= wanted, driver)
        cluster.kill_nodes()
        killed, done = time.monotonic(), last_step(steps)
        _wait_until(lambda: last_step(steps) > done, driver)
        return time.monotonic() - killed


def _wait_until(is_so: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _LONGEST_SECONDS
    while not is_so():
        if driver.poll() is not None or time.monotonic() > deadline:
            raise EnvironmentFault("a side of the benchmark ended, or did nothing", where=str(driver.args))
        time.sleep(_LOOK_SECONDS)


@contextmanager
def _started(cluster: GrowingCluster, command: list[str], scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m` a driver that joins the cluster, killed at the end if it still runs."""
    environment = joining_environment(cluster.head, RAY_ADDRESS=cluster.head.address, NO_COLOR="1")
    with (scratch / "drivers.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=log, stderr=log, env=environment, cwd=os.sep
        )
    try:
        yield child
    except EnvironmentFault as fault:
        said = (scratch / "drivers.log").read_text(encoding="utf-8", errors="replace")[-_LONGEST_SAID:]
        raise EnvironmentFault(fault.what, where=f"{' '.join(command)}: {said}") from fault
    finally:
        child.kill()
        child.wait()

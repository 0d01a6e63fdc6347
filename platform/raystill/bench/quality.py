"""Which way of teaching makes the better student: divergences, signals, rollouts; two tasks, three seeds.

Tasks: the demo's (verifiable answers) and next-token text (the standard library's sources, by a teacher
trained on the half of them that students never see). One teacher store per task and seed serves all arms.
Two arms run beside each other, each on one thread. What was measured is kept under runs/ until the benchmark
is complete: one that was killed goes on with the arms that are missing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raystill.bench.quality_arms import ARMS, QUICK_ARMS, Arm
from raystill.bench.quality_records import TEACHER, ArmJob, ArmRecord, arm_job, load_record, run_arm
from raystill.bench.quality_verdicts import arm_tables, claim_rows
from raystill.bench.quality_worlds import DRAWS, FULL, QUICK, Sizes, World, build_world
from raystill.bench.result import bench_result
from raystill.cluster.ray_session import ray_session
from raystill.config.schema import Config
from raystill.run.manifest import installed_packages
from raystill.run.publish import make_directory

RUNS = Path("runs")


def run_bench(*, quick: bool = False, root: Path | None = None) -> dict[str, Any]:
    """All arms on all tasks and seeds; `quick`: one task, one seed and three arms of a few steps, which shows
    the shape and proves nothing. `root` is where intermediate results are kept."""
    sizes, arms = (QUICK, QUICK_ARMS) if quick else (FULL, ARMS)
    root = (root or RUNS / f"bench-quality-{_recipe(sizes, arms)}").absolute()
    make_directory(root)
    worlds = _build_worlds(root, sizes, arms)
    _run_missing([arm_job(root, world, arm) for world in worlds for arm in (None, *arms)])
    records = {
        (world.task, world.seed, TEACHER if arm is None else arm.name): _required(arm_job(root, world, arm))
        for world in worlds
        for arm in (None, *arms)
    }
    result = bench_result("quality", claim_rows(records), arm_tables(records))
    shutil.rmtree(root)
    return result


def _recipe(sizes: Sizes, arms: Sequence[Arm]) -> str:
    """Names everything that results depend on, so that those of another recipe are never taken for these."""
    facts = [asdict(sizes), [asdict(arm) for arm in arms], DRAWS, installed_packages()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _build_worlds(root: Path, sizes: Sizes, arms: Sequence[Arm]) -> list[World]:
    with_draws = any(arm.signal == "sampled" for arm in arms)
    with ray_session(Config()):
        return [
            build_world(root, task, seed, sizes, with_draws=with_draws, threads=os.cpu_count() or 1)
            for task in sizes.tasks
            for seed in sizes.seeds
        ]


def _run_missing(jobs: Sequence[ArmJob]) -> None:
    """Run the jobs without a record, two at a time; those that go on from another arm come last."""
    missing = [job for job in jobs if load_record(job) is None]
    context = multiprocessing.get_context("spawn")
    with _one_thread(), ProcessPoolExecutor(2, context, load_libraries) as pool:
        for later in (False, True):
            wave = [job for job in missing if (job.arm is not None and job.arm.after is not None) is later]
            for _ in pool.map(run_arm, wave):
                pass


@contextmanager
def _one_thread() -> Iterator[None]:
    """OMP_NUM_THREADS=1 for processes that are started in the body: libraries read it when they load."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def load_libraries() -> None:
    """Import what training would import late, so that no process's first arm is charged for it."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM  # noqa: F401


def _required(job: ArmJob) -> ArmRecord:
    record = load_record(job)
    assert record is not None
    return record

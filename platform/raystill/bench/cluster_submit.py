"""From `raystill submit` to the first row that a job has committed, beside a job that only prints."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

import raystill
from raystill.bench.taught_run import taught_run
from raystill.errors import EnvironmentFault
from raystill.run.paths import RunPaths
from raystill.testing.ray_head import RayHead, joining_environment, ray_head

PRINTING = "ray job submit, a script that prints"
_NUM_CPUS, _NUM_PROMPTS = 2, 40
_LONGEST_SECONDS = 600.0
# Both are carried to the head with the job, together with the run's configuration.
_SCRIPT, _RUNTIME_ENV = "print_time.py", "runtime_env.yaml"
_PRINTS = """import sys, time
print("here")
open(sys.argv[1], "w").write(str(time.time()))
"""


def measure_submits(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round by side: to the job's first words, and of ours to its first committed row."""
    ours: dict[str, list[float]] = {"first_words_s": [], "first_row_s": []}
    theirs: dict[str, list[float]] = {"first_words_s": []}
    with (
        tempfile.TemporaryDirectory(prefix="rs-bench-") as scratch,
        ray_head(_NUM_CPUS, with_dashboard=True) as head,
    ):
        folder = Path(scratch) / "submitted"
        folder.mkdir()
        (folder / _SCRIPT).write_text(_PRINTS, encoding="utf-8")
        package = str(Path(raystill.__file__).parents[1])
        environment = {"env_vars": {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"}}
        (folder / _RUNTIME_ENV).write_text(yaml.safe_dump(environment), encoding="utf-8")
        _submit_printing(
            head, folder, Path(scratch) / "first"
        )  # the head's own agents start with a first job
        for number in range(rounds):
            theirs["first_words_s"].append(_submit_printing(head, folder, Path(scratch) / f"time-{number}"))
            words, row = _submit_run(head, folder, Path(scratch), f"job-{number}")
            ours["first_words_s"].append(words)
            ours["first_row_s"].append(row)
    return {"ours": ours, PRINTING: theirs}


def _submit_printing(head: RayHead, folder: Path, mark: Path) -> float:
    started = time.time()
    _run(
        [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", head.dashboard,
         "--working-dir", ".", "--runtime-env", _RUNTIME_ENV, "--", "python", _SCRIPT, str(mark)],
        head, folder,
    )  # fmt: skip
    return float(mark.read_text(encoding="utf-8")) - started


def _submit_run(head: RayHead, folder: Path, scratch: Path, name: str) -> tuple[float, float]:
    """Seconds to the first event of the run's log, and to its first part in the store."""
    values = taught_run(scratch, name, _NUM_PROMPTS, eval_size=10)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    root = scratch / "runs" / name
    paths = RunPaths(root, store=root / "teacher_store")
    started = time.time()
    _run(
        [sys.executable, "-m", "raystill.cli.main", "submit", "run", "--config", f"{name}.yaml",
         "--address", head.dashboard, "--runtime-env", _RUNTIME_ENV],
        head, folder,
    )  # fmt: skip
    return first_event(paths.run_log) - started, min(part_times(paths.store)) - started


def first_event(log: Path) -> float:
    """When a run logged its first event, in seconds since the epoch."""
    return float(json.loads(log.read_text(encoding="utf-8").splitlines()[0])["time"])


def part_times(store: Path) -> list[float]:
    """When each part of a store was committed, in seconds since the epoch, ascending."""
    return sorted(path.stat().st_mtime for path in store.rglob("*.parquet"))


def _run(command: list[str], head: RayHead, folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, env=joining_environment(head), capture_output=True, text=True, check=False,
        timeout=_LONGEST_SECONDS,
    )  # fmt: skip
    if done.returncode:
        raise EnvironmentFault("a submitted job of the benchmark failed", where=done.stdout + done.stderr)
